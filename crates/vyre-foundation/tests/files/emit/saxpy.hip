// The program `saxpy`.
#include "vyre_device.h"

namespace program_saxpy {

struct Arguments {
  VyreArguments common;
  VyreBinding b_a;
  VyreBinding b_x;
  VyreBinding b_y;
};

struct Context : VyreContext {
  VyreBuffer<f32> b_a;
  VyreBuffer<f32> b_x;
  VyreBuffer<f32> b_y;
};

extern "C" __global__ void __launch_bounds__(256) kernel_saxpy(const Arguments arguments) {
  Context vyre;
  vyre_begin(vyre, arguments.common, vyre_local_id_x(), 256u);
  vyre.b_a = vyre_bind<f32>(arguments.b_a);
  vyre.b_x = vyre_bind<f32>(arguments.b_x);
  vyre.b_y = vyre_bind<f32>(arguments.b_y);
  const u32 l_i = vyre_global_id_x(256u);
  if ((l_i < vyre.b_x.len) & (l_i < vyre.b_y.len)) {
    vyre.b_y.put(l_i, vyre_add(vyre_mul(vyre.b_a.get(0u), vyre.b_x.get(l_i)), vyre.b_y.get(l_i)));
  }
}

}
