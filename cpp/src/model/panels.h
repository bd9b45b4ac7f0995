// Products with a frozen weight on x86 CPUs, by oneDNN's small-matrix kernels.
//
// PyTorch's own products by oneDNN keep a compiled primitive and its buffers for every number of
// rows they meet, some 0.5 MiB each: with ragged batches memory rises for as long as new shapes
// come. Here a product is made of tiles of at most 64 rows and 64 columns, so that a weight's shape
// needs a few dozen kernels of a page each, whatever the rows are, and a sum does not depend on how
// many rows there are beside it.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "ops/cpu/panels.h"

namespace tabes {

// act(product + bias) + residual; the tensors may be undefined.
struct Epilogue {
  at::Tensor bias = {}, residual = {};
  cpu::Activation activation = cpu::Activation::none;
};

// Whether this processor, this build of PyTorch and its present settings have the kernels.
bool has_panel_products(const at::Tensor& weight);

// weight [out, in], float32 or bfloat16, laid out anew in panels of outputs: a tensor as large as
// the weight (one row of inputs more where their number is odd, in bfloat16).
at::Tensor to_panels(const at::Tensor& weight);
// The weight again.
at::Tensor from_panels(const at::Tensor& panels, int64_t out, int64_t in);

// A weight [out, in] in panels, or as it is. A panel that a product needs and the weight does not
// have is made on the way, 256 KiB at a time, and forgotten.
struct PanelWeight {
  at::Tensor data;
  bool in_panels = false;
  int64_t out = 0, in = 0;

  // x [n, in] -> [n, out].
  at::Tensor product(const at::Tensor& x, const Epilogue& epilogue) const;
  // g [n, out] -> [n, in], by the transposed weight.
  at::Tensor adjoint(const at::Tensor& g, const Epilogue& epilogue) const;
};

}  // namespace tabes
