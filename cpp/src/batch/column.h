// A number for each of some rows, on the host.
#pragma once

#include <ATen/core/Tensor.h>

namespace tabes {

// A tensor [n] as float64 on the CPU.
struct Column {
  explicit Column(const at::Tensor& t) : held(t.to(at::kCPU, at::kDouble).contiguous()) {}
  const double* data() const { return held.const_data_ptr<double>(); }
  double operator[](int64_t i) const { return data()[i]; }
  at::Tensor held;
};

}  // namespace tabes
