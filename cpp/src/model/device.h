// Where models can be.
#pragma once

#include <c10/core/Device.h>

#include <string>

namespace tabes {

// Throws DeviceError, saying what to do, unless models can be on this device.
void check_device(at::Device device);

// Why there is no CUDA, by whether tabes has kernels for it and PyTorch sees a GPU; empty if it is
// there.
std::string why_no_cuda(bool has_kernels, bool sees_gpu);

}  // namespace tabes
