// Kernels around products with weights in panels (model/panels.h), one set per instruction set.
//
// A panel holds up to kPanelWidth columns of a matrix [depth, columns]: for float [depth][columns],
// for BFloat16 pairs of the depth side by side, [ceil(depth / 2)][columns][2], the last pair's
// second value being 0 where the depth is odd.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>

namespace tabes::cpu {

constexpr int64_t kPanelWidth = 64;

enum class Activation { none, gelu, gelu_tanh };

template <typename T>
struct PanelKernels {
  // From a matrix that lies the other way, [columns][depth], its rows `stride` apart.
  void (*from_rows)(const T* rows, int64_t stride, int64_t columns, int64_t depth, T* panel);
  // From a matrix that lies as the panel does, [depth][columns], its rows `stride` apart.
  void (*from_columns)(const T* rows, int64_t stride, int64_t columns, int64_t depth, T* panel);
  // From a whole panel of the transposed matrix: `columns` of that one's depth, from an even one
  // on, which `panel_in` points to, become columns; its `depth` columns the depth.
  void (*from_panel)(const T* panel_in, int64_t columns, int64_t depth, T* panel);
  // y = act(sums + bias) + residual for rows of `columns`: those of `sums` kPanelWidth apart, those
  // of y and the residual `stride`. Bias and residual may be null.
  void (*finish)(const float* sums, int64_t rows, int64_t columns, const T* bias,
                 Activation activation, const T* residual, T* y, int64_t stride);
};

// The best kernels this processor can run.
template <typename T>
const PanelKernels<T>& panel_kernels();

}  // namespace tabes::cpu
