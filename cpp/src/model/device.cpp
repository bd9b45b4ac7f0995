#include "model/device.h"

#include <ATen/Context.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include "messages.h"

namespace tabes {

std::string why_no_cuda(bool has_kernels, bool sees_gpu) {
  if (has_kernels && sees_gpu) return {};
  std::string why = "device \"cuda\" is not available: ";
  if (!has_kernels) {
    why +=
        "this build of tabes has no CUDA kernels; rebuild it with -DTABES_CUDA=ON against a CUDA "
        "build of PyTorch (README, CUDA)";
  }
  if (!sees_gpu) {
    why += has_kernels ? "PyTorch sees no NVIDIA GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES"
                       : ". PyTorch sees no NVIDIA GPU here either";
  }
  return why + "; or use device=\"cpu\"";
}

void check_device(at::Device device) {
  if (device.is_cpu()) return;
  if (!device.is_cuda()) {
    throw DeviceError(text("models cannot be on device \"", device, "\"; use \"cpu\" or \"cuda\""));
  }
  // Any operator will do: the CUDA build registers all of them.
  const auto op = c10::Dispatcher::singleton().findSchema({"tabes::row_statistics", ""});
  const bool has_kernels = op && op->hasKernelForDispatchKey(c10::DispatchKey::CUDA);
  const std::string why = why_no_cuda(has_kernels, at::hasCUDA());
  if (!why.empty()) throw DeviceError(why);
}

}  // namespace tabes
