#include "ops/cuda/host.h"

#include "batch/uploads.h"
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
  std::vector<int64_t> all;
  for (at::IntArrayRef row : rows) all.insert(all.end(), row.begin(), row.end());
  return upload(all, type, device).view({static_cast<int64_t>(rows.size()), -1});
}

}  // namespace tabes::ops
