// A frozen linear map, in one copy of its weight.
#pragma once

#include <ATen/core/Tensor.h>

#include "model/panels.h"

namespace tabes {

class Linear {
 public:
  Linear() = default;

  // weight [out, in]; bias [out] or undefined. With `prepack` the weight is laid out in panels
  // where this machine has products with them, and the plain copy is not kept; else panels are made
  // on the way where that pays. Every map, forward and adjoint, works from the one copy there is.
  Linear(at::Tensor weight, at::Tensor bias, bool prepack);

  int64_t out_features() const { return weight_.out; }
  bool is_packed() const { return weight_.in_panels; }

  // The map to outputs from .. from + count alone, on the same memory. Not of a packed one.
  Linear part(int64_t from, int64_t count) const {
    return {weight_.data.narrow(0, from, count),
            bias_.defined() ? bias_.narrow(0, from, count) : bias_, /*prepack=*/false};
  }

  at::Tensor operator()(const at::Tensor& x) const;                        // x W^T + b
  at::Tensor plus(const at::Tensor& x, const at::Tensor& residual) const;  // x W^T + b + residual
  // gelu(x W^T + b); approximate: the tanh form.
  at::Tensor gelu(const at::Tensor& x, bool approximate) const;

  // For gradients g [n, out]: g W and g W + residual.
  at::Tensor adjoint(const at::Tensor& g) const;
  at::Tensor adjoint_plus(const at::Tensor& g, const at::Tensor& residual) const;

 private:
  bool by_panels(int64_t rows) const;
  at::Tensor plain() const;

  PanelWeight weight_;
  at::Tensor bias_;
};

}  // namespace tabes
