// A frozen linear map, kept in whichever layout multiplies fastest on this device.
#pragma once

#include <ATen/core/Tensor.h>

namespace tabes {

class Linear {
 public:
  Linear() = default;

  // weight [out, in]; bias [out] or undefined. On x86 CPUs the weight is reordered once into
  // oneDNN's blocked layout and the plain copy is dropped: on AMD the default float32 product is
  // 1.3 to 2.3 times slower, and the fused sums below save a pass over the result.
  Linear(at::Tensor weight, at::Tensor bias);

  int64_t out_features() const { return out_; }
  bool defined() const { return weight_.defined(); }

  at::Tensor operator()(const at::Tensor& x) const;                        // x W^T + b
  at::Tensor plus(const at::Tensor& x, const at::Tensor& residual) const;  // x W^T + b + residual
  // gelu(x W^T + b); approximate: the tanh form.
  at::Tensor gelu(const at::Tensor& x, bool approximate) const;

 private:
  at::Tensor weight_;  // [out, in], or oneDNN's opaque layout of it
  at::Tensor bias_;
  int64_t out_ = 0;
  bool packed_ = false;
};

}  // namespace tabes
