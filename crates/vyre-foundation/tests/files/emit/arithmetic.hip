// The program `arithmetic`.
#include "vyre_device.h"

namespace program_arithmetic {

struct Arguments {
  VyreArguments common;
  VyreBinding b_i;
  VyreBinding b_u;
  VyreBinding b_f;
  VyreBinding b_h;
};

struct Context : VyreContext {
  VyreBuffer<i32> b_i;
  VyreBuffer<u32> b_u;
  VyreBuffer<f32> b_f;
  VyreBuffer<vyre_f16> b_h;
};

extern "C" __global__ void __launch_bounds__(1) kernel_arithmetic(const Arguments arguments) {
  Context vyre;
  vyre_begin(vyre, arguments.common, 0u, 1u);
  vyre.b_i = vyre_bind<i32>(arguments.b_i);
  vyre.b_u = vyre_bind<u32>(arguments.b_u);
  vyre.b_f = vyre_bind<f32>(arguments.b_f);
  vyre.b_h = vyre_bind<vyre_f16>(arguments.b_h);
  const i32 l_a = vyre.b_i.get(0u);
  const i32 l_b = vyre.b_i.get(1u);
  const u32 l_c = vyre.b_u.get(0u);
  const u32 l_d = vyre.b_u.get(1u);
  const f32 l_x = vyre.b_f.get(0u);
  const f32 l_y = vyre.b_f.get(1u);
  vyre.b_i.put(0u, vyre_add(l_a / 2, vyre_rem(l_a, (-1))));
  vyre.b_i.put(1u, vyre_add(vyre_shl(l_a, (u32)l_b), vyre_min(vyre_div(l_a, (i32)l_d), 0)));
  vyre.b_u.put(0u, vyre_div(l_c, l_d) + (l_c * (l_c >> 4u)));
  vyre.b_u.put(1u, vyre_to_u32(vyre_mul(vyre_neg(l_y), 1073741800.0f)) + ((l_y < l_x) ? 0u : vyre_rem(l_c, l_d)));
  vyre.b_f.put(0u, vyre_mul(l_x, l_y));
  vyre.b_f.put(1u, vyre_add(vyre_fma(l_x, l_y, 4.0f), (f32)((l_d != 0) & !(l_x != l_y))));
  vyre.b_h.put(0u, l_x);
}

}
