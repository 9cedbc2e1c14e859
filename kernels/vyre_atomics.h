// Atomics of the IR on elements of buffers, with the ordering and the scope as template arguments. The bodies
// differ by vendor: PTX instructions that carry both, or the builtins of clang.
//
// Part of vyre_device.h, which includes it.

#ifndef VYRE_ATOMICS_H
#define VYRE_ATOMICS_H

enum VyreOrder { VYRE_RELAXED, VYRE_ACQUIRE, VYRE_RELEASE, VYRE_ACQ_REL };
enum VyreScope { VYRE_WORKGROUP, VYRE_DEVICE, VYRE_SYSTEM };

#if VYRE_CUDA

// Every ordering is an instruction of its own; the arguments of the template leave one of these.
#define VYRE_PTX_ORDERS(X, in_scope, scope, ...)           \
  X(VYRE_RELAXED, "relaxed", in_scope, scope, __VA_ARGS__) \
  X(VYRE_ACQUIRE, "acquire", in_scope, scope, __VA_ARGS__) \
  X(VYRE_RELEASE, "release", in_scope, scope, __VA_ARGS__) \
  X(VYRE_ACQ_REL, "acq_rel", in_scope, scope, __VA_ARGS__)
#define VYRE_PTX_CHANGE(in_order, order, in_scope, scope, operation, constraint) \
  if (O == in_order && S == in_scope)                                           \
    asm volatile("atom." order "." scope "." operation " %0, [%1], %2;"         \
                 : "=" constraint(old)                                          \
                 : "l"(at), constraint(operand)                                 \
                 : "memory");
#define VYRE_PTX_EXCHANGE(in_order, order, in_scope, scope, width, constraint)         \
  if (O == in_order && S == in_scope)                                                 \
    asm volatile("atom." order "." scope ".cas.b" width " %0, [%1], %2, %3;"          \
                 : "=" constraint(old)                                                \
                 : "l"(at), constraint(expected), constraint(replacement)             \
                 : "memory");
#define VYRE_PTX_LOAD(in_order, order, in_scope, scope, width, constraint) \
  if (O == in_order && S == in_scope)                                     \
    asm volatile("ld." order "." scope ".b" width " %0, [%1];" : "=" constraint(value) : "l"(at) : "memory");
#define VYRE_PTX_STORE(in_order, order, in_scope, scope, width, constraint) \
  if (O == in_order && S == in_scope)                                      \
    asm volatile("st." order "." scope ".b" width " [%0], %1;" : : "l"(at), constraint(value) : "memory");

#define VYRE_ATOMIC_CHANGE(T, name, change, operation, constraint)          \
  template <VyreOrder O, VyreScope S>                                       \
  VYRE_FUNCTION T vyre_atomic_##name(T* at, T value) {                      \
    T old = 0;                                                              \
    const T operand = change;                                               \
    VYRE_PTX_ORDERS(VYRE_PTX_CHANGE, VYRE_WORKGROUP, "cta", operation, constraint) \
    VYRE_PTX_ORDERS(VYRE_PTX_CHANGE, VYRE_DEVICE, "gpu", operation, constraint)    \
    return old;                                                             \
  }
#define VYRE_ATOMICS(T, width, type, constraint)                              \
  VYRE_ATOMIC_CHANGE(T, add, value, "add.u" width, constraint)                \
  VYRE_ATOMIC_CHANGE(T, sub, vyre_neg(value), "add.u" width, constraint)      \
  VYRE_ATOMIC_CHANGE(T, and, value, "and.b" width, constraint)                \
  VYRE_ATOMIC_CHANGE(T, or, value, "or.b" width, constraint)                  \
  VYRE_ATOMIC_CHANGE(T, xor, value, "xor.b" width, constraint)                \
  VYRE_ATOMIC_CHANGE(T, min, value, "min." type, constraint)                  \
  VYRE_ATOMIC_CHANGE(T, max, value, "max." type, constraint)                  \
  VYRE_ATOMIC_CHANGE(T, exchange, value, "exch.b" width, constraint)          \
  template <VyreOrder O, VyreScope S>                                         \
  VYRE_FUNCTION T vyre_atomic_compare_exchange(T* at, T expected, T replacement) { \
    T old = 0;                                                                \
    VYRE_PTX_ORDERS(VYRE_PTX_EXCHANGE, VYRE_WORKGROUP, "cta", width, constraint) \
    VYRE_PTX_ORDERS(VYRE_PTX_EXCHANGE, VYRE_DEVICE, "gpu", width, constraint) \
    return old;                                                               \
  }                                                                           \
  template <VyreOrder O, VyreScope S>                                         \
  VYRE_FUNCTION T vyre_atomic_load(const T* at) {                             \
    T value = 0;                                                              \
    VYRE_PTX_LOAD(VYRE_RELAXED, "relaxed", VYRE_WORKGROUP, "cta", width, constraint) \
    VYRE_PTX_LOAD(VYRE_ACQUIRE, "acquire", VYRE_WORKGROUP, "cta", width, constraint) \
    VYRE_PTX_LOAD(VYRE_RELAXED, "relaxed", VYRE_DEVICE, "gpu", width, constraint) \
    VYRE_PTX_LOAD(VYRE_ACQUIRE, "acquire", VYRE_DEVICE, "gpu", width, constraint) \
    VYRE_PTX_LOAD(VYRE_RELAXED, "relaxed", VYRE_SYSTEM, "sys", width, constraint) \
    VYRE_PTX_LOAD(VYRE_ACQUIRE, "acquire", VYRE_SYSTEM, "sys", width, constraint) \
    return value;                                                             \
  }                                                                           \
  template <VyreOrder O, VyreScope S>                                         \
  VYRE_FUNCTION void vyre_atomic_store(T* at, T value) {                      \
    VYRE_PTX_STORE(VYRE_RELAXED, "relaxed", VYRE_WORKGROUP, "cta", width, constraint) \
    VYRE_PTX_STORE(VYRE_RELEASE, "release", VYRE_WORKGROUP, "cta", width, constraint) \
    VYRE_PTX_STORE(VYRE_RELAXED, "relaxed", VYRE_DEVICE, "gpu", width, constraint) \
    VYRE_PTX_STORE(VYRE_RELEASE, "release", VYRE_DEVICE, "gpu", width, constraint) \
    VYRE_PTX_STORE(VYRE_RELAXED, "relaxed", VYRE_SYSTEM, "sys", width, constraint) \
    VYRE_PTX_STORE(VYRE_RELEASE, "release", VYRE_SYSTEM, "sys", width, constraint) \
  }

VYRE_ATOMICS(u32, "32", "u32", "r")
VYRE_ATOMICS(i32, "32", "s32", "r")
VYRE_ATOMICS(u64, "64", "u64", "l")

#else

#define VYRE_ORDER(O)                 \
  ((O) == VYRE_RELAXED   ? __ATOMIC_RELAXED \
   : (O) == VYRE_ACQUIRE ? __ATOMIC_ACQUIRE \
   : (O) == VYRE_RELEASE ? __ATOMIC_RELEASE \
                         : __ATOMIC_ACQ_REL)
// A failed exchange has stored nothing, so it releases nothing.
#define VYRE_ORDER_OF_FAILURE(O) \
  ((O) == VYRE_RELAXED || (O) == VYRE_RELEASE ? __ATOMIC_RELAXED : __ATOMIC_ACQUIRE)

#if VYRE_AMD
#define VYRE_SCOPED(builtin, S, ...)                                                      \
  (S == VYRE_WORKGROUP ? __hip_atomic_##builtin(__VA_ARGS__, __HIP_MEMORY_SCOPE_WORKGROUP) \
   : S == VYRE_DEVICE  ? __hip_atomic_##builtin(__VA_ARGS__, __HIP_MEMORY_SCOPE_AGENT)     \
                       : __hip_atomic_##builtin(__VA_ARGS__, __HIP_MEMORY_SCOPE_SYSTEM))
#else
#define VYRE_SCOPED(builtin, S, ...) VYRE_HOST_ATOMIC_##builtin(__VA_ARGS__)
#endif

#define VYRE_ATOMIC_CHANGE(T, name, builtin, operand)            \
  template <VyreOrder O, VyreScope S>                            \
  VYRE_FUNCTION T vyre_atomic_##name(T* at, T value) {           \
    return VYRE_SCOPED(builtin, S, at, operand, VYRE_ORDER(O));  \
  }
#define VYRE_ATOMICS(T)                                                                          \
  VYRE_ATOMIC_CHANGE(T, add, fetch_add, value)                                                   \
  VYRE_ATOMIC_CHANGE(T, sub, fetch_add, vyre_neg(value))                                         \
  VYRE_ATOMIC_CHANGE(T, and, fetch_and, value)                                                   \
  VYRE_ATOMIC_CHANGE(T, or, fetch_or, value)                                                     \
  VYRE_ATOMIC_CHANGE(T, xor, fetch_xor, value)                                                   \
  VYRE_ATOMIC_CHANGE(T, min, fetch_min, value)                                                   \
  VYRE_ATOMIC_CHANGE(T, max, fetch_max, value)                                                   \
  VYRE_ATOMIC_CHANGE(T, exchange, exchange, value)                                               \
  template <VyreOrder O, VyreScope S>                                                            \
  VYRE_FUNCTION T vyre_atomic_compare_exchange(T* at, T expected, T replacement) {               \
    VYRE_SCOPED(compare_exchange_strong, S, at, &expected, replacement, VYRE_ORDER(O),           \
                VYRE_ORDER_OF_FAILURE(O));                                                       \
    return expected;                                                                             \
  }                                                                                              \
  template <VyreOrder O, VyreScope S>                                                            \
  VYRE_FUNCTION T vyre_atomic_load(const T* at) {                                                \
    return VYRE_SCOPED(load, S, (T*)at, VYRE_ORDER_OF_FAILURE(O));                               \
  }                                                                                              \
  template <VyreOrder O, VyreScope S>                                                            \
  VYRE_FUNCTION void vyre_atomic_store(T* at, T value) {                                         \
    VYRE_SCOPED(store, S, at, value, O == VYRE_RELEASE ? __ATOMIC_RELEASE : __ATOMIC_RELAXED);   \
  }

VYRE_ATOMICS(u32)
VYRE_ATOMICS(i32)
VYRE_ATOMICS(u64)

#endif

// Past the end an atomic does nothing and yields zero.
#define VYRE_CHECKED(name)                                                                        \
  template <VyreOrder O, VyreScope S, class T>                                                    \
  VYRE_FUNCTION T vyre_atomic_##name(const VyreBuffer<T>& buffer, u32 index, T value) {           \
    return index < buffer.len ? vyre_atomic_##name<O, S>(buffer.data + index, value) : T(0);      \
  }
VYRE_CHECKED(add)
VYRE_CHECKED(sub)
VYRE_CHECKED(and)
VYRE_CHECKED(or)
VYRE_CHECKED(xor)
VYRE_CHECKED(min)
VYRE_CHECKED(max)
VYRE_CHECKED(exchange)
template <VyreOrder O, VyreScope S, class T>
VYRE_FUNCTION T vyre_atomic_compare_exchange(const VyreBuffer<T>& buffer, u32 index, T expected, T replacement) {
  if (index >= buffer.len) return T(0);
  return vyre_atomic_compare_exchange<O, S>(buffer.data + index, expected, replacement);
}
template <VyreOrder O, VyreScope S, class T>
VYRE_FUNCTION T vyre_atomic_load(const VyreBuffer<T>& buffer, u32 index) {
  return index < buffer.len ? vyre_atomic_load<O, S>((const T*)buffer.data + index) : T(0);
}
template <VyreOrder O, VyreScope S, class T>
VYRE_FUNCTION void vyre_atomic_store(const VyreBuffer<T>& buffer, u32 index, T value) {
  if (index < buffer.len) vyre_atomic_store<O, S>(buffer.data + index, value);
}

#endif
