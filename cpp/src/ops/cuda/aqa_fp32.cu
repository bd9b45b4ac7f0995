#include "ops/cuda/aqa_launch.h"

namespace tabes::gpu {

int launch_aqa_fp32(const AqaParams& p, int head_dim, const AqaGrid& grid, void* stream) {
  return launch_aqa<float>(p, head_dim, grid, stream);
}

int launch_aqa_adjoint(const AqaParams& p, Number number, int head_dim, AqaGrid grid,
                       void* stream) {
  switch (number) {
    case Number::bf16:
      return launch_aqa_bf16(p, head_dim, grid, stream);
    case Number::fp16:
      return launch_aqa_fp16(p, head_dim, grid, stream);
    default:
      return launch_aqa_fp32(p, head_dim, grid, stream);
  }
}

}  // namespace tabes::gpu
