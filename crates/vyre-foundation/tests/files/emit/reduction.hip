// The program `reduction`.
#include "vyre_device.h"

namespace program_reduction {

struct Arguments {
  VyreArguments common;
  VyreBinding b_data;
  VyreBinding b_total;
};

struct Context : VyreContext {
  VyreBuffer<u32> b_data;
  VyreBuffer<u32> b_total;
  VyreBuffer<u32> b_sums;
};

extern "C" __global__ void __launch_bounds__(4) kernel_reduction(const Arguments arguments) {
  Context vyre;
  vyre_begin(vyre, arguments.common, vyre_local_id_x(), 4u);
  vyre.b_data = vyre_bind<u32>(arguments.b_data);
  vyre.b_total = vyre_bind<u32>(arguments.b_total);
  __shared__ u32 s_sums[4];
  vyre.b_sums = vyre_share(s_sums, 4u);
  vyre_clear(vyre, vyre.b_sums);
  vyre_barrier();
  const u32 l_me = vyre_local_id_x();
  u32 l_sum = 0u;
  for (VyreChunks c_i = vyre_chunks(vyre_global_id_x(4u), vyre.b_data.len, 8u); vyre_chunk(vyre, c_i, 8u);) {
    for (u32 l_i = c_i.from, n_i = c_i.rounds; n_i != 0u;
         l_i = l_i + 8u, n_i = n_i - 1u) {
      l_sum = l_sum + vyre.b_data.get(l_i);
    }
  }
  if (vyre.left) return;
  vyre.b_sums.put(l_me, l_sum);
  vyre_barrier();
  u32 l_half = 2u;
  for (; !vyre.left && (l_half > 0u); vyre_round(vyre)) {
    if (l_me < l_half) {
      vyre.b_sums.put(l_me, vyre.b_sums.get(l_me) + vyre.b_sums.load(l_me + l_half));
    }
    vyre_barrier();
    l_half = l_half / 2u;
  }
  if (vyre.left) return;
  if (l_me == 0u) {
    vyre_atomic_add<VYRE_RELAXED, VYRE_DEVICE>(vyre.b_total, 0u, vyre.b_sums.get(0u));
  }
}

}
