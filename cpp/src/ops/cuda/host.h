// What the files that register CUDA operators share.
#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>

#include "ops/cuda/aqa_params.h"

namespace tabes::ops {

// The stream that PyTorch's own kernels on the current device go to, as a cudaStream_t.
void* current_stream();

// Throws DeviceError if a launch did not succeed.
void check_launch(int status, const char* op);

// Throws DeviceError for a type that has no kernels.
gpu::Number number_of(const at::Tensor& t, const char* op);

// Rows of offsets, all as long, as one tensor on `device`; the host does not wait for the copy.
at::Tensor offsets_on(at::Device device, at::ScalarType type,
                      std::initializer_list<at::IntArrayRef> rows);

}  // namespace tabes::ops
