// The one file that needs the headers of PyTorch's CUDA build.
#include <c10/cuda/CUDAStream.h>

#include "ops/cuda/host.h"

namespace tabes::ops {

void* current_stream() {
  return c10::cuda::getCurrentCUDAStream().stream();
}

}  // namespace tabes::ops
