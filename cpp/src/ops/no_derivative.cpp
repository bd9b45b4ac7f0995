// Operators that autograd cannot follow say so when it tries, instead of passing for constants.
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

namespace {

// Operators that write to an argument and return nothing leave no result to fail at in the backward
// pass, so they refuse at once.
void in_place(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  const auto arguments = torch::jit::last(*stack, op.schema().arguments().size());
  for (const c10::IValue& value : arguments) {
    TORCH_CHECK(
        !value.isTensor() || !value.toTensor().requires_grad() || !c10::GradMode::is_enabled(),
        "derivative for ", op.schema().name(), " is not implemented");
  }
  op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
}

}  // namespace

TORCH_LIBRARY_IMPL(tabes, Autograd, m) {
  for (const char* name : {"active_query_attention_backward", "gated", "gated_backward", "rms_norm",
                           "rms_norm_backward", "row_statistics", "sample_rows"}) {
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
  }
  for (const char* name : {"entropy_adjoint_", "rope_"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&in_place>());
  }
}
