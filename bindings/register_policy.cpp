#include <pybind11/stl.h>
#include <pybind11/trampoline_self_life_support.h>

#include "bindings.h"
#include "tabes/policy.h"

namespace tabes::python {
namespace {

namespace py = pybind11;

// Lets a Python class be a policy: it overrides name() and score(context).
class PythonPolicy final : public Policy, public py::trampoline_self_life_support {
 public:
  std::string name() const override { PYBIND11_OVERRIDE_PURE(std::string, Policy, name); }
  Scores score(const StepContext& context) const override { return Scores(tensor_scores(context)); }

 private:
  at::Tensor tensor_scores(const StepContext& context) const {
    PYBIND11_OVERRIDE_PURE(at::Tensor, Policy, score, &context);
  }
};

}  // namespace

void register_policy(py::module_& m) {
  py::class_<Predictions>(m, "Predictions", "What the model predicts at n rows; tensors [n].")
      .def_readonly("token", &Predictions::token)
      .def_readonly("confidence", &Predictions::confidence)
      .def_readonly("max_prob", &Predictions::max_prob)
      .def_readonly("margin", &Predictions::margin)
      .def_readonly("entropy", &Predictions::entropy);

  py::class_<StepContext>(m, "StepContext", "What a policy sees; valid during score() only.")
      .def_property_readonly("tokens", [](const StepContext& c) { return c.batch.tokens; })
      .def_property_readonly("cu_seqlens", [](const StepContext& c) { return c.batch.cu_seqlens; })
      .def_property_readonly("rows", [](const StepContext& c) { return c.eligible.rows; })
      .def_property_readonly("cu_rows", [](const StepContext& c) { return c.eligible.cu_rows; })
      .def_property_readonly("predictions", [](const StepContext& c) { return c.predictions; })
      .def_property_readonly("sequence", [](const StepContext& c) { return c.sequence; })
      .def_property_readonly("step", [](const StepContext& c) { return c.step; })
      .def_property_readonly("steps", [](const StepContext& c) { return c.steps; })
      .def_property_readonly("quota", [](const StepContext& c) { return c.quota; })
      .def_property_readonly("seed", [](const StepContext& c) { return c.seed; });

  py::class_<Policy, PythonPolicy, py::smart_holder>(
      m, "Policy", "Orders the masked positions. Subclasses define name() and score(context).")
      .def(py::init<>())
      .def("name", &Policy::name)
      .def(
          "score",
          [](const Policy& policy, const StepContext& context) {
            return policy.score(context).score;
          },
          py::arg("context"));

  m.def(
      "make_policy",
      [](const std::string& name) { return std::const_pointer_cast<Policy>(make_policy(name)); },
      py::arg("name"));
  m.def("policy_names", &policy_names);
}

}  // namespace tabes::python
