#include "ops/cuda/aqa_launch.h"

namespace tabes::gpu {

int launch_aqa_fp16(const AqaParams& p, int head_dim, const AqaGrid& grid, void* stream) {
  return launch_aqa<Half>(p, head_dim, grid, stream);
}

}  // namespace tabes::gpu
