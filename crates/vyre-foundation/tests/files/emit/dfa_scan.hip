// The program `dfa_scan`.
#include "vyre_device.h"

namespace program_dfa_scan {

struct Arguments {
  VyreArguments common;
  VyreBinding b_table;
  VyreBinding b_text;
  VyreBinding b_ends;
};

struct Context : VyreContext {
  VyreBuffer<u16> b_table;
  VyreBuffer<u8> b_text;
  VyreBuffer<u32> b_ends;
};

extern "C" __global__ void __launch_bounds__(2) kernel_dfa_scan(const Arguments arguments) {
  Context vyre;
  vyre_begin(vyre, arguments.common, vyre_local_id_x(), 2u);
  vyre.b_table = vyre_bind<u16>(arguments.b_table);
  vyre.b_text = vyre_bind<u8>(arguments.b_text);
  vyre.b_ends = vyre_bind<u32>(arguments.b_ends);
  const u32 l_first = vyre_global_id_x(2u) * 4u;
  u32 l_state = 0u;
  u32 l_end = 4294967295u;
  for (VyreChunks c_k = vyre_chunks(l_first, l_first + 4u, 1u); vyre_chunk(vyre, c_k, 1u);) {
    for (u32 l_k = c_k.from, n_k = c_k.rounds; n_k != 0u;
         l_k = l_k + 1u, n_k = n_k - 1u) {
      l_state = vyre.b_table.load((l_state * 2u) + vyre.b_text.load(l_k));
      switch (l_state) {
        case 2u: {
          l_end = l_k + 1u;
          goto behind_1;
          break;
        }
      }
    }
  }
  behind_1:;
  if (vyre.left) return;
  vyre.b_ends.store(vyre_global_id_x(2u), l_end);
}

}
