// The program `subgroup_sum`.
#include "vyre_device.h"

namespace program_subgroup_sum {

struct Arguments {
  VyreArguments common;
  VyreBinding b_data;
  VyreBinding b_out;
};

struct Context : VyreContext {
  VyreBuffer<u32> b_data;
  VyreBuffer<u32> b_out;
};

extern "C" __global__ void __launch_bounds__(8) kernel_subgroup_sum(const Arguments arguments) {
  Context vyre;
  vyre_begin(vyre, arguments.common, vyre_local_id_x(), 8u);
  vyre.b_data = vyre_bind<u32>(arguments.b_data);
  vyre.b_out = vyre_bind<u32>(arguments.b_out);
  const u32 l_sum = vyre_reduce<VyreAdd>(vyre, vyre.b_data.load(vyre_global_id_x(8u)));
  const u32 l_highest = vyre_reduce<VyreMax>(vyre, vyre.b_data.load(vyre_global_id_x(8u)));
  if (vyre_subgroup_lane(vyre) == 0u) {
    vyre.b_out.put(0u, l_sum);
  }
}

}
