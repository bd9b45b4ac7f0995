#include <pybind11/stl.h>
#include <pybind11/trampoline_self_life_support.h>

#include "bindings.h"
#include "tabes/error.h"
#include "tabes/policy.h"

namespace tabes::python {
namespace {

namespace py = pybind11;

const char* name_of(Pace pace) {
  return pace == Pace::quota ? "quota" : pace == Pace::adaptive ? "adaptive" : "timed";
}

Pace pace_of(const std::string& name) {
  for (const Pace pace : {Pace::quota, Pace::adaptive, Pace::timed}) {
    if (name == name_of(pace)) return pace;
  }
  throw InputError("pace '" + name + "' is unknown; known are quota, adaptive and timed");
}

// A step as Python sees it. The step's own context lives for one call; who keeps this beyond the
// call gets an error, not freed memory.
class ContextView {
 public:
  explicit ContextView(const StepContext& context) : context_(&context) {}
  const StepContext& get() const {
    if (!context_) throw InputError("a StepContext is valid only while the policy decides");
    return *context_;
  }
  void close() { context_ = nullptr; }

 private:
  const StepContext* context_;
};

// Calls a method of a Python policy with a view of the context.
py::object call_with(const py::function& method, const StepContext& context) {
  const py::object view = py::cast(ContextView(context));
  struct Closer {
    ~Closer() { view.cast<ContextView&>().close(); }
    const py::object& view;
  } closer{view};
  return method(view);
}

// Lets a Python class be a policy: it overrides name() and score(context), or decide(context), and
// pace() where it gives counts. What it remembers is its own affair.
class PythonPolicy final : public Policy, public py::trampoline_self_life_support {
 public:
  std::string name() const override {
    const py::gil_scoped_acquire locked;
    const py::function own = py::get_override(static_cast<const Policy*>(this), "name");
    return own ? own().cast<std::string>() : "a policy without a name";
  }

  Decision decide(const StepContext& context) const override {
    const py::gil_scoped_acquire locked;
    const py::function whole = py::get_override(static_cast<const Policy*>(this), "decide");
    if (whole) return returned<Decision>("decide", call_with(whole, context), "a tabes.Decision");
    const py::function score = py::get_override(static_cast<const Policy*>(this), "score");
    if (!score) throw InputError("a policy must define score(context) or decide(context)");
    return Decision(returned<at::Tensor>("score", call_with(score, context), "a tensor [n]"));
  }

  Pace pace() const override {
    const py::gil_scoped_acquire locked;
    const py::function own = py::get_override(static_cast<const Policy*>(this), "pace");
    return own ? pace_of(returned<std::string>("pace", own(), "a name")) : Pace::quota;
  }

 private:
  template <typename T>
  T returned(const char* method, const py::object& value, const char* wanted) const {
    py::detail::make_caster<T> caster;
    if (value.is_none() || !caster.load(value, true)) {
      throw InputError(name() + ": " + method + "() returned " +
                       py::repr(value).cast<std::string>() + "; it must be " + wanted);
    }
    return py::detail::cast_op<T>(std::move(caster));
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

  py::class_<ContextView>(m, "StepContext", "What a policy sees; valid during score() only.")
      .def_property_readonly("tokens", [](const ContextView& c) { return c.get().batch.tokens; })
      .def_property_readonly("cu_seqlens",
                             [](const ContextView& c) { return c.get().batch.cu_seqlens; })
      .def_property_readonly("rows", [](const ContextView& c) { return c.get().eligible.rows; })
      .def_property_readonly("cu_rows",
                             [](const ContextView& c) { return c.get().eligible.cu_rows; })
      .def_property_readonly("predictions",
                             [](const ContextView& c) { return c.get().predictions; })
      .def_property_readonly("revealed", [](const ContextView& c) { return c.get().revealed.rows; })
      .def_property_readonly("cu_revealed",
                             [](const ContextView& c) { return c.get().revealed.cu_rows; })
      .def_property_readonly("revealed_confidence",
                             [](const ContextView& c) { return c.get().revealed_confidence; })
      .def_property_readonly("place", [](const ContextView& c) { return c.get().place; })
      .def_property_readonly("sequence", [](const ContextView& c) { return c.get().sequence; })
      .def_property_readonly("step", [](const ContextView& c) { return c.get().step; })
      .def_property_readonly("steps", [](const ContextView& c) { return c.get().steps; })
      .def_property_readonly("block_step", [](const ContextView& c) { return c.get().block_step; })
      .def_property_readonly("block_steps",
                             [](const ContextView& c) { return c.get().block_steps; })
      .def_property_readonly("first", [](const ContextView& c) { return c.get().first; })
      .def_property_readonly("quota", [](const ContextView& c) { return c.get().quota; })
      .def_property_readonly("seed", [](const ContextView& c) { return c.get().seed; })
      .def(
          "look_ahead",
          [](const ContextView& c, const std::vector<std::pair<size_t, std::vector<int64_t>>>& w) {
            const StepContext& context = c.get();
            std::vector<Ahead> wanted;
            for (const auto& [sequence, reveal] : w) wanted.push_back({sequence, reveal});
            const py::gil_scoped_release unlocked;
            return context.look_ahead(wanted);
          },
          py::arg("wanted"));

  py::class_<Decision>(m, "Decision", "What a policy says of the eligible rows of a step.")
      .def(py::init([](at::Tensor score, std::vector<int64_t> count, std::vector<int64_t> remask) {
             Decision d(std::move(score));
             d.count = std::move(count);
             d.remask = std::move(remask);
             return d;
           }),
           py::arg("score"), py::arg("count") = std::vector<int64_t>{},
           py::arg("remask") = std::vector<int64_t>{})
      .def_readonly("score", &Decision::score)
      .def_readonly("count", &Decision::count)
      .def_readonly("remask", &Decision::remask);

  py::class_<Policy, PythonPolicy, py::smart_holder>(
      m, "Policy", "Orders the masked positions. Subclasses define name() and score(context).")
      .def(py::init<>())
      .def("name", &Policy::name)
      .def("pace", [](const Policy& policy) { return name_of(policy.pace()); })
      .def(
          "decide",
          [](const Policy& policy, const ContextView& context) {
            return policy.decide(context.get());
          },
          py::arg("context"))
      .def(
          "score",
          [](const Policy& policy, const ContextView& context) {
            return policy.decide(context.get()).score;
          },
          py::arg("context"));

  m.def(
      "make_policy",
      [](const std::string& name, const PolicyOptions& options) {
        return std::const_pointer_cast<Policy>(make_policy(name, options));
      },
      py::arg("name"), py::arg("options") = PolicyOptions{});
  m.def("policy_names", &policy_names);
}

}  // namespace tabes::python
