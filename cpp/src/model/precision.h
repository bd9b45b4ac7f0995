// Which number types a model may have, and what float16 needs beyond the others.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

namespace tabes {

// float16 has kernels on GPUs only; float64 is for verification.
inline bool is_model_type(at::ScalarType type, at::Device device) {
  return type == at::kFloat || type == at::kBFloat16 || type == at::kDouble ||
         (type == at::kHalf && !device.is_cpu());
}

// Most derivatives of an entropy by the logits of a large vocabulary are below what float16 can
// hold (6e-8). The adjoint is linear, so it is computed this much larger and divided in float32.
inline double adjoint_scale(at::ScalarType type) {
  return type == at::kHalf ? 1024.0 : 1.0;
}

}  // namespace tabes
