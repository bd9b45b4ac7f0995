#include "ops/cuda/host.h"

#include <ATen/ops/empty.h>

#include "messages.h"
#include "ops/cuda/device_info.h"

namespace tabes::ops {

void check_launch(int status, const char* op) {
  if (status == 0) return;
  throw DeviceError(text(op, ": CUDA refused to run its kernel: ", gpu::error_text(status),
                         ". An earlier operation may be the cause; CUDA_LAUNCH_BLOCKING=1 tells"));
}

gpu::Number number_of(const at::Tensor& t, const char* op) {
  switch (t.scalar_type()) {
    case at::kFloat:
      return gpu::Number::fp32;
    case at::kBFloat16:
      return gpu::Number::bf16;
    case at::kHalf:
      return gpu::Number::fp16;
    default:
      throw DeviceError(text(op, " on CUDA takes float32, bfloat16 or float16, not ",
                             t.scalar_type(), "; use device=\"cpu\""));
  }
}

at::Tensor offsets_on(at::Device device, at::ScalarType type,
                      std::initializer_list<at::IntArrayRef> rows) {
  const int64_t columns = static_cast<int64_t>(rows.begin()->size());
  at::Tensor host = at::empty({static_cast<int64_t>(rows.size()), columns},
                              at::TensorOptions().dtype(type).pinned_memory(device.is_cuda()));
  int64_t at = 0;
  for (at::IntArrayRef row : rows) {
    for (int64_t offset : row) {
      if (type == at::kInt) {
        host.data_ptr<int32_t>()[at++] = static_cast<int32_t>(offset);
      } else {
        host.data_ptr<int64_t>()[at++] = offset;
      }
    }
  }
  return host.to(device, /*non_blocking=*/true);
}

}  // namespace tabes::ops
