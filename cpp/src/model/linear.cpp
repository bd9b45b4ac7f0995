#include "model/linear.h"

#include <ATen/Context.h>
#include <ATen/core/List.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>

#include <mutex>
#include <optional>
#include <string_view>

#include "ops/call.h"

namespace tabes {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using NoScalars = c10::List<std::optional<at::Scalar>>;
using Reorder = at::Tensor(const at::Tensor&, std::optional<c10::SymInt>);
using Pointwise = at::Tensor(const at::Tensor&, const at::Tensor&, const OptionalTensor&,
                             c10::string_view, NoScalars, std::optional<c10::string_view>);
using Binary = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                          const OptionalTensor&, c10::string_view);

// PyTorch's oneDNN operators have no C++ header; they are reached by name. A build without them
// uses the default product.
struct OneDnn {
  c10::TypedOperatorHandle<Reorder> reorder;
  c10::TypedOperatorHandle<Pointwise> pointwise;
  c10::TypedOperatorHandle<Binary> binary;

  static const OneDnn* get() {
    static const std::optional<OneDnn> found = []() -> std::optional<OneDnn> {
      auto& dispatcher = c10::Dispatcher::singleton();
      auto reorder = dispatcher.findSchema({"mkldnn::_reorder_linear_weight", ""});
      auto pointwise = dispatcher.findSchema({"mkldnn::_linear_pointwise", ""});
      auto binary = dispatcher.findSchema({"mkldnn::_linear_pointwise", "binary"});
      if (!at::globalContext().hasMKLDNN() || !reorder || !pointwise || !binary) return {};
      return OneDnn{reorder->typed<Reorder>(), pointwise->typed<Pointwise>(),
                    binary->typed<Binary>()};
    }();
    return found ? &*found : nullptr;
  }
};

bool worth_packing(const at::Tensor& weight) {
  if (!weight.is_cpu() || !OneDnn::get()) return false;
  const std::string_view isa = cpu::instruction_set();
  // Without AVX-512 oneDNN emulates bfloat16, and float64 it does not multiply at all.
  return weight.scalar_type() == at::kFloat
             ? isa != "default"
             : weight.scalar_type() == at::kBFloat16 && isa == "avx512";
}

}  // namespace

// Made by whichever thread needs it first; the others wait.
struct Linear::Transpose {
  std::once_flag once;
  at::Tensor packed;
};

namespace {

OptionalTensor optional(const at::Tensor& t) {
  return t.defined() ? OptionalTensor(t) : std::nullopt;
}

at::Tensor product(const at::Tensor& x, const at::Tensor& packed, const OptionalTensor& bias) {
  return OneDnn::get()->pointwise.call(x, packed, bias, "none", NoScalars(), "");
}

at::Tensor sum(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& packed,
               const OptionalTensor& bias) {
  return OneDnn::get()->binary.call(x, residual, packed, bias, "add");
}

}  // namespace

Linear::Linear(at::Tensor weight, at::Tensor bias, bool prepack)
    : weight_(std::move(weight)),
      bias_(std::move(bias)),
      out_(weight_.size(0)),
      in_(weight_.size(1)) {
  if (prepack && worth_packing(weight_)) {
    weight_ = OneDnn::get()->reorder.call(weight_, std::nullopt);
    transpose_ = std::make_shared<Transpose>();
  }
}

at::Tensor Linear::operator()(const at::Tensor& x) const {
  if (x.size(0) == 0) return at::empty({0, out_}, x.options());
  if (transpose_) return product(x, weight_, optional(bias_));
  return at::linear(x, weight_, optional(bias_));
}

at::Tensor Linear::plus(const at::Tensor& x, const at::Tensor& residual) const {
  if (x.size(0) == 0) return residual;
  if (transpose_) return sum(x, residual, weight_, optional(bias_));
  if (!bias_.defined()) return at::addmm(residual, x, weight_.t());
  return at::linear(x, weight_, bias_).add_(residual);
}

at::Tensor Linear::gelu(const at::Tensor& x, bool approximate) const {
  if (x.size(0) == 0) return at::empty({0, out_}, x.options());
  const char* form = approximate ? "tanh" : "none";
  if (transpose_) {
    return OneDnn::get()->pointwise.call(x, weight_, optional(bias_), "gelu", NoScalars(), form);
  }
  at::Tensor y = (*this)(x);
  return at::gelu_(y, form);
}

const at::Tensor& Linear::transposed() const {
  std::call_once(transpose_->once, [&] {
    const at::Tensor plain = weight_.to_dense();
    transpose_->packed = OneDnn::get()->reorder.call(plain.t().contiguous(), std::nullopt);
  });
  return transpose_->packed;
}

at::Tensor Linear::adjoint(const at::Tensor& g) const {
  if (g.size(0) == 0) return at::empty({0, in_}, g.options());
  return transpose_ ? product(g, transposed(), std::nullopt) : at::mm(g, weight_);
}

at::Tensor Linear::adjoint_plus(const at::Tensor& g, const at::Tensor& residual) const {
  if (g.size(0) == 0) return residual;
  return transpose_ ? sum(g, residual, transposed(), std::nullopt)
                    : at::addmm(residual, g, weight_);
}

}  // namespace tabes
