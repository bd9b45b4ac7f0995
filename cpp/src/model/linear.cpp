#include "model/linear.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>

#include <optional>

namespace tabes {
namespace {

std::optional<at::Tensor> optional(const at::Tensor& t) {
  return t.defined() ? std::optional<at::Tensor>(t) : std::nullopt;
}

}  // namespace

Linear::Linear(at::Tensor weight, at::Tensor bias, bool prepack)
    : weight_{std::move(weight), false}, bias_(std::move(bias)) {
  weight_.out = weight_.data.size(0);
  weight_.in = weight_.data.size(1);
  if (prepack && has_panel_products(weight_.data)) {
    weight_.data = to_panels(weight_.data);
    weight_.in_panels = true;
  }
}

// From so many rows on, panels of a plain float32 weight are worth making on the way. PyTorch's own
// product of bfloat16 keeps memory for every number of rows, so theirs always are.
constexpr int64_t kRowsForPanels = 64;

bool Linear::by_panels(int64_t rows) const {
  const at::Tensor& data = weight_.data;
  const bool worth = data.scalar_type() == at::kBFloat16 || rows >= kRowsForPanels;
  return (weight_.in_panels || (worth && data.is_contiguous())) && has_panel_products(data);
}

// Panels are of no use while somebody has oneDNN turned off.
at::Tensor Linear::plain() const {
  return weight_.in_panels ? from_panels(weight_.data, weight_.out, weight_.in) : weight_.data;
}

at::Tensor Linear::operator()(const at::Tensor& x) const {
  if (x.size(0) == 0) return at::empty({0, weight_.out}, x.options());
  if (by_panels(x.size(0))) return weight_.product(x, {.bias = bias_});
  return at::linear(x, plain(), optional(bias_));
}

at::Tensor Linear::plus(const at::Tensor& x, const at::Tensor& residual) const {
  if (x.size(0) == 0) return residual;
  if (by_panels(x.size(0))) return weight_.product(x, {.bias = bias_, .residual = residual});
  if (!bias_.defined()) return at::addmm(residual, x, plain().t());
  return at::linear(x, plain(), bias_).add_(residual);
}

at::Tensor Linear::gelu(const at::Tensor& x, bool approximate) const {
  if (x.size(0) == 0) return at::empty({0, weight_.out}, x.options());
  if (by_panels(x.size(0))) {
    const auto form = approximate ? cpu::Activation::gelu_tanh : cpu::Activation::gelu;
    return weight_.product(x, {.bias = bias_, .activation = form});
  }
  at::Tensor y = (*this)(x);
  return at::gelu_(y, approximate ? "tanh" : "none");
}

at::Tensor Linear::adjoint(const at::Tensor& g) const {
  if (g.size(0) == 0) return at::empty({0, weight_.in}, g.options());
  return by_panels(g.size(0)) ? weight_.adjoint(g, {}) : at::mm(g, plain());
}

at::Tensor Linear::adjoint_plus(const at::Tensor& g, const at::Tensor& residual) const {
  if (g.size(0) == 0) return residual;
  return by_panels(g.size(0)) ? weight_.adjoint(g, {.residual = residual})
                              : at::addmm(residual, g, plain());
}

}  // namespace tabes
