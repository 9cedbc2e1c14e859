// The program `histogram`.
#include "vyre_device.h"

namespace program_histogram {

struct Arguments {
  VyreArguments common;
  VyreBinding b_data;
  VyreBinding b_counts;
};

struct Context : VyreContext {
  VyreBuffer<u8> b_data;
  VyreBuffer<u32> b_counts;
  VyreBuffer<u32> b_bins;
};

extern "C" __global__ void __launch_bounds__(4) kernel_histogram(const Arguments arguments) {
  Context vyre;
  vyre_begin(vyre, arguments.common, vyre_local_id_x(), 4u);
  vyre.b_data = vyre_bind<u8>(arguments.b_data);
  vyre.b_counts = vyre_bind<u32>(arguments.b_counts);
  __shared__ u32 s_bins[4];
  vyre.b_bins = vyre_share(s_bins, 4u);
  vyre_clear(vyre, vyre.b_bins);
  vyre_barrier();
  const u32 l_i = vyre_global_id_x(4u);
  if (l_i < vyre.b_data.len) {
    const u32 l_bin = vyre.b_data.get(l_i) & 3u;
    const u32 l_before = vyre_atomic_add<VYRE_RELAXED, VYRE_WORKGROUP>(vyre.b_bins, l_bin, 1u);
  }
  vyre_barrier();
  const u32 l_mine = vyre.b_bins.get(vyre_local_id_x());
  if (l_mine > 0u) {
    vyre_atomic_add<VYRE_RELAXED, VYRE_DEVICE>(vyre.b_counts, vyre_local_id_x(), l_mine);
  }
}

}
