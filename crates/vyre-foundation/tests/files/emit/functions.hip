// The program `functions`.
#include "vyre_device.h"

namespace program_functions {

struct Arguments {
  VyreArguments common;
  VyreBinding b_data;
};

struct Context : VyreContext {
  VyreBuffer<u32> b_data;
};

// True if it ended the invocation.
VYRE_FUNCTION bool f_divide(Context& vyre, const u32 l_a, const u32 l_b, u32& r_0, u32& r_1) {
  if (l_b == 0u) {
    vyre_trap(vyre, 9u);
    return true;
  }
  r_0 = vyre_div(l_a, l_b);
  r_1 = vyre_rem(l_a, l_b);
  return false;
}

// True if it ended the invocation.
VYRE_FUNCTION bool f_slow(Context& vyre, const u32 l_a, const u32 l_b, u32& r_0, u32& r_1) {
  u32 l_left = l_a;
  u32 l_times = 0u;
  for (; !vyre.left && (l_left >= l_b); vyre_round(vyre)) {
    if (l_b == 0u) {
      break;
    }
    l_left = l_left - l_b;
    l_times = l_times + 1u;
  }
  if (vyre.left) return true;
  r_0 = l_times;
  r_1 = l_left;
  return false;
}

VYRE_FUNCTION void f_larger(Context& vyre, const u32 l_a, const u32 l_b, u32& r_0) {
  r_0 = (l_a > l_b) ? l_a : l_b;
  return;
}

extern "C" __global__ void __launch_bounds__(1) kernel_functions(const Arguments arguments) {
  Context vyre;
  vyre_begin(vyre, arguments.common, 0u, 1u);
  vyre.b_data = vyre_bind<u32>(arguments.b_data);
  u32 l_quotient;
  u32 l_remainder;
  if (f_divide(vyre, vyre.b_data.get(0u), vyre.b_data.get(1u), l_quotient, l_remainder)) return;
  u32 l_times;
  u32 l_left;
  if (f_slow(vyre, vyre.b_data.get(0u), vyre.b_data.get(1u), l_times, l_left)) return;
  u32 l_q;
  f_larger(vyre, l_quotient, l_times, l_q);
  vyre.b_data.put(0u, l_q);
  vyre.b_data.put(1u, vyre_min(l_remainder, l_left));
}

}
