// The program `spin_lock`.
#include "vyre_device.h"

namespace program_spin_lock {

struct Arguments {
  VyreArguments common;
  VyreBinding b_lock;
  VyreBinding b_shared_sum;
};

struct Context : VyreContext {
  VyreBuffer<u32> b_lock;
  VyreBuffer<u64> b_shared_sum;
};

extern "C" __global__ void __launch_bounds__(1) kernel_spin_lock(const Arguments arguments) {
  Context vyre;
  vyre_begin(vyre, arguments.common, 0u, 1u);
  vyre.b_lock = vyre_bind<u32>(arguments.b_lock);
  vyre.b_shared_sum = vyre_bind<u64>(arguments.b_shared_sum);
  bool l_held = false;
  for (; !vyre.left && (!l_held); vyre_round(vyre)) {
    const u32 l_old = vyre_atomic_compare_exchange<VYRE_ACQUIRE, VYRE_DEVICE>(vyre.b_lock, 0u, 0u, 1u);
    l_held = l_old == 0u;
  }
  if (vyre.left) return;
  const u64 l_sum = vyre_atomic_load<VYRE_RELAXED, VYRE_DEVICE>(vyre.b_shared_sum, 0u);
  vyre_atomic_store<VYRE_RELAXED, VYRE_DEVICE>(vyre.b_shared_sum, 0u, l_sum + (u64)(vyre_workgroup_id_x() + 1u));
  vyre_atomic_store<VYRE_RELEASE, VYRE_DEVICE>(vyre.b_lock, 0u, 0u);
}

}
