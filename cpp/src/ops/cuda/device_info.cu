#include <cuda_runtime.h>

#include "ops/cuda/device_info.h"

namespace tabes::gpu {

int multiprocessors() {
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
    return 0;
  }
  return count;
}

const char* error_text(int status) {
  return cudaGetErrorString(static_cast<cudaError_t>(status));
}

}  // namespace tabes::gpu
