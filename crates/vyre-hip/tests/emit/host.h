// Stands in for a GPU: emitted kernels become ordinary C++, so that their meaning is tested without one. The
// invocations of a workgroup run one after the other, from barrier to barrier, each on a stack of its own. The
// workgroups of a program with grid barriers are threads.

#include <math.h>
#include <sched.h>
#include <stdint.h>
#include <ucontext.h>

#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __shared__ static thread_local
#define __launch_bounds__(invocations)

struct HostIds {
  unsigned x, y, z;
};
static thread_local HostIds threadIdx, blockIdx, gridDim;

struct HostFiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  HostIds id;
  bool ended;
};
static thread_local ucontext_t host_scheduler;
static thread_local HostFiber* host_current;

inline void __syncthreads() { swapcontext(&host_current->context, &host_scheduler); }
inline void vyre_host_yield() { sched_yield(); }
// Time flies, so that an abort is seen at the first look.
inline unsigned vyre_host_clock() {
  static thread_local unsigned now = 0;
  return now += 16;
}

// Lanes of a subgroup. Everybody lays its value down, and after a barrier looks at the one it wants; the second
// barrier keeps it there until all have looked.
#define VYRE_HOST_SUBGROUP 32u
static thread_local unsigned host_lanes[1024];
inline unsigned vyre_host_from_lane(unsigned own, unsigned other, unsigned value) {
  host_lanes[own] = value;
  __syncthreads();
  const unsigned found = host_lanes[other];
  __syncthreads();
  return found;
}

#define VYRE_HOST_ATOMIC_load(at, order) __atomic_load_n(at, order)
#define VYRE_HOST_ATOMIC_store(at, value, order) __atomic_store_n(at, value, order)
#define VYRE_HOST_ATOMIC_exchange(at, value, order) __atomic_exchange_n(at, value, order)
#define VYRE_HOST_ATOMIC_compare_exchange_strong(at, expected, value, order, failure) \
  __atomic_compare_exchange_n(at, expected, value, false, order, failure)
#define VYRE_HOST_ATOMIC_fetch_add(at, value, order) __atomic_fetch_add(at, value, order)
#define VYRE_HOST_ATOMIC_fetch_and(at, value, order) __atomic_fetch_and(at, value, order)
#define VYRE_HOST_ATOMIC_fetch_or(at, value, order) __atomic_fetch_or(at, value, order)
#define VYRE_HOST_ATOMIC_fetch_xor(at, value, order) __atomic_fetch_xor(at, value, order)
#define VYRE_HOST_ATOMIC_fetch_min(at, value, order) host_extremum(at, value, true)
#define VYRE_HOST_ATOMIC_fetch_max(at, value, order) host_extremum(at, value, false)

template <class T>
T host_extremum(T* at, T value, bool least) {
  T old = __atomic_load_n(at, __ATOMIC_SEQ_CST);
  while ((least ? value < old : value > old) &&
         !__atomic_compare_exchange_n(at, &old, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
  }
  return old;
}

template <class Kernel>
struct HostStart {
  static void fiber() {
    (*kernel)();
    host_current->ended = true;
  }
  static thread_local const Kernel* kernel;
};
template <class Kernel>
thread_local const Kernel* HostStart<Kernel>::kernel;

template <class Kernel>
void host_workgroup(HostIds size, const Kernel& kernel) {
  const size_t stack_bytes = 64 << 10;
  std::vector<HostFiber> fibers(size.x * size.y * size.z);
  HostStart<Kernel>::kernel = &kernel;
  for (unsigned i = 0; i < fibers.size(); i++) {
    HostFiber& fiber = fibers[i];
    fiber.id = {i % size.x, i / size.x % size.y, i / size.x / size.y};
    fiber.ended = false;
    fiber.stack.reset(new char[stack_bytes]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = stack_bytes;
    fiber.context.uc_link = &host_scheduler;
    makecontext(&fiber.context, &HostStart<Kernel>::fiber, 0);
  }
  for (bool waiting = true; waiting;) {
    waiting = false;
    for (HostFiber& fiber : fibers) {
      if (fiber.ended) continue;
      host_current = &fiber;
      threadIdx = fiber.id;
      swapcontext(&host_scheduler, &fiber.context);
      waiting |= !fiber.ended;
    }
  }
}

// Runs a kernel over a grid; `together` where workgroups wait for each other, `barriers` where invocations do.
template <class Kernel>
void host_run(const unsigned* grid, HostIds size, bool barriers, bool together, const Kernel& kernel) {
  const HostIds all = {grid[0], grid[1], grid[2]};
  const auto workgroup = [=, &kernel](unsigned index) {
    gridDim = all;
    blockIdx = {index % all.x, index / all.x % all.y, index / all.x / all.y};
    if (barriers) return host_workgroup(size, kernel);
    for (threadIdx.z = 0; threadIdx.z < size.z; threadIdx.z++)
      for (threadIdx.y = 0; threadIdx.y < size.y; threadIdx.y++)
        for (threadIdx.x = 0; threadIdx.x < size.x; threadIdx.x++) kernel();
  };
  std::vector<std::thread> threads;
  for (unsigned index = 0; index < all.x * all.y * all.z; index++) {
    if (together) {
      threads.emplace_back(workgroup, index);
    } else {
      workgroup(index);
    }
  }
  for (std::thread& thread : threads) thread.join();
}
