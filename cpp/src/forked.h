// Computing in a process that was forked.
#pragma once

#include <c10/core/Device.h>

namespace tabes {

// At the entry of every call that computes. A forked child has none of its parent's threads, but
// what waits for them does not know: where the parent computed in several threads and the child
// would too, this throws DeviceError, and likewise where both would use a GPU.
void enter(const at::Device& device);

}  // namespace tabes
