// The program `tiled_matmul`.
#include "vyre_device.h"

namespace program_tiled_matmul {

struct Arguments {
  VyreArguments common;
  VyreBinding b_size;
  VyreBinding b_a;
  VyreBinding b_b;
  VyreBinding b_c;
};

struct Context : VyreContext {
  VyreBuffer<u32> b_size;
  VyreBuffer<f32> b_a;
  VyreBuffer<f32> b_b;
  VyreBuffer<f32> b_c;
  VyreBuffer<f32> b_tile_a;
  VyreBuffer<f32> b_tile_b;
};

extern "C" __global__ void __launch_bounds__(16) kernel_tiled_matmul(const Arguments arguments) {
  Context vyre;
  vyre_begin(vyre, arguments.common, vyre_local_id_x() + vyre_local_id_y() * 4u, 16u);
  vyre.b_size = vyre_bind<u32>(arguments.b_size);
  vyre.b_a = vyre_bind<f32>(arguments.b_a);
  vyre.b_b = vyre_bind<f32>(arguments.b_b);
  vyre.b_c = vyre_bind<f32>(arguments.b_c);
  __shared__ f32 s_tile_a[16];
  vyre.b_tile_a = vyre_share(s_tile_a, 16u);
  vyre_clear(vyre, vyre.b_tile_a);
  __shared__ f32 s_tile_b[16];
  vyre.b_tile_b = vyre_share(s_tile_b, 16u);
  vyre_clear(vyre, vyre.b_tile_b);
  vyre_barrier();
  const u32 l_n = vyre.b_size.get(0u);
  const u32 l_x = vyre_local_id_x();
  const u32 l_y = vyre_local_id_y();
  const u32 l_row = vyre_global_id_y(4u);
  const u32 l_column = vyre_global_id_x(4u);
  f32 l_sum = 0.0f;
  for (u32 l_t = 0u, e_t = (l_n + 3u) / 4u; l_t < e_t;
       l_t = vyre_next(vyre, l_t, e_t, 1u)) {
    const u32 l_k = l_t * 4u;
    vyre.b_tile_a.put((l_y * 4u) + l_x, ((l_row < l_n) & ((l_k + l_x) < l_n)) ? vyre.b_a.load(((l_row * l_n) + l_k) + l_x) : 0.0f);
    vyre.b_tile_b.put((l_y * 4u) + l_x, ((l_column < l_n) & ((l_k + l_y) < l_n)) ? vyre.b_b.load(((l_k + l_y) * l_n) + l_column) : 0.0f);
    vyre_barrier();
    for (u32 l_l = 0u; l_l < 4u; l_l = l_l + 1u) {
      l_sum = vyre_fma(vyre.b_tile_a.get((l_y * 4u) + l_l), vyre.b_tile_b.get((l_l * 4u) + l_x), l_sum);
    }
    vyre_barrier();
  }
  if (vyre.left) return;
  if ((l_row < l_n) & (l_column < l_n)) {
    vyre.b_c.store((l_row * l_n) + l_column, l_sum);
  }
}

}
