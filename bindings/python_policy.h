// Policies that are written in Python.
#pragma once

#include <pybind11/stl.h>
#include <pybind11/trampoline_self_life_support.h>

#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "bindings.h"
#include "tabes/error.h"
#include "tabes/policy.h"

namespace tabes::python {

// A step as Python sees it. The step's own context lives for one call; who keeps this beyond the
// call gets an error, not freed memory.
class ContextView {
 public:
  explicit ContextView(const StepContext& context) : context_(&context) {}
  const StepContext& get() const {
    if (!context_) throw InputError("a StepContext is valid only while the policy decides");
    return *context_;
  }
  bool open() const { return context_ != nullptr; }
  void close() { context_ = nullptr; }

 private:
  const StepContext* context_;
};

// Calls a method of a Python policy with a view of the context.
pybind11::object call_with(const pybind11::function& method, const StepContext& context);

const char* name_of(Pace pace);
Pace pace_of(const std::string& name);  // InputError for another name

// Whether a policy that `self` holds, as an attribute or in a list, tuple or dict that is one,
// answers yes.
bool any_held(const pybind11::object& self, const std::function<bool(const Policy&)>& ask);

// A Python method of a policy that runs in this thread. While it does, the policy is asked what it
// is without that method: what super() means, whoever calls it.
class Running {
 public:
  Running(const Policy* policy, const char* method);
  ~Running();
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;
  static Running* of(const Policy* policy, const char* method);

  // What the policy's C++ base has decided meanwhile.
  Decision below;

 private:
  const Policy* policy_;
  const char* method_;
  Running* outer_;
};

// Lets a Python class be a policy, from nothing or from a built-in one: it overrides score(context)
// or decide(context), and what else it wants to. What it remembers is its own affair.
template <typename Base>
class PythonPolicy final : public Base, public pybind11::trampoline_self_life_support {
  static constexpr bool kFromNothing = std::is_abstract_v<Base>;

 public:
  PythonPolicy() = default;
  explicit PythonPolicy(Base base)
    requires(!kFromNothing)
      : Base(std::move(base)) {}

  std::string name() const override {
    const pybind11::gil_scoped_acquire locked;
    if (const auto own = override_of("name")) return called<std::string>("name", own, "a string");
    if constexpr (kFromNothing) {
      return "a policy without a name";
    } else {
      return Base::name();
    }
  }

  PolicySettings settings() const override {
    const pybind11::gil_scoped_acquire locked;
    if (const auto own = override_of("settings")) {
      return policy_settings(called<pybind11::dict>("settings", own, "a dict"));
    }
    return Base::settings();
  }

  Decision decide(const StepContext& context) const override {
    const pybind11::gil_scoped_acquire locked;
    if (Running* running = Running::of(this, "decide")) {
      if constexpr (kFromNothing) {
        throw InputError("a policy must define score(context) or decide(context)");
      } else {
        const pybind11::gil_scoped_release unlocked;
        return running->below = Base::decide(context);
      }
    }
    const auto whole = override_of("decide");
    const auto score = whole ? pybind11::function() : override_of("score");
    Running running(this, "decide");
    if (whole) return returned<Decision>("decide", call_with(whole, context), "a tabes.Decision");
    if (score) {
      auto scores = returned<at::Tensor>("score", call_with(score, context), "a tensor [n]");
      running.below.score = std::move(scores);  // counts stay those of the base
      return std::move(running.below);
    }
    if constexpr (kFromNothing) {
      throw InputError("a policy must define score(context) or decide(context)");
    } else {
      const pybind11::gil_scoped_release unlocked;
      return Base::decide(context);
    }
  }

  Pace pace() const override {
    const pybind11::gil_scoped_acquire locked;
    const auto own = override_of("pace");
    return own ? pace_of(called<std::string>("pace", own, "a name")) : Base::pace();
  }

  // Counts of its own keep to no quota.
  bool at_least_quota() const override {
    const pybind11::gil_scoped_acquire locked;
    return !override_of("decide") && !override_of("pace") && Base::at_least_quota();
  }

  bool wants_waiting() const override {
    const pybind11::gil_scoped_acquire locked;
    if (const auto own = override_of("wants_waiting")) {
      return called<bool>("wants_waiting", own, "True or False");
    }
    if constexpr (!kFromNothing) {
      return Base::wants_waiting();
    } else {
      return any_held_wants("wants_waiting", [](const Policy& p) { return p.wants_waiting(); });
    }
  }

  bool wants_context(const std::vector<int64_t>& step) const override {
    const pybind11::gil_scoped_acquire locked;
    if (const auto own = override_of("wants_context")) {
      return called<bool>("wants_context", own, "True or False", step);
    }
    if constexpr (!kFromNothing) {
      return Base::wants_context(step);
    } else {
      return any_held_wants("wants_context",
                            [&](const Policy& p) { return p.wants_context(step); });
    }
  }

  bool on_device(const Denoiser& model) const override {
    const pybind11::gil_scoped_acquire locked;
    return !override_of("decide") && !override_of("score") && Base::on_device(model);
  }

 private:
  // The Python class's own method, if it has one that does not run already.
  pybind11::function override_of(const char* method) const {
    if (Running::of(this, method)) return {};
    try {
      return pybind11::get_override(static_cast<const Base*>(this), method);
    } catch (const pybind11::type_error&) {  // it cannot be called
      throw InputError(std::string("a policy's attribute '") + method + "' hides its method " +
                       method + "(): call it something else");
    }
  }

  template <typename T, typename... Arguments>
  T called(const char* method, const pybind11::function& own, const char* wanted,
           const Arguments&... arguments) const {
    const Running running(this, method);
    return returned<T>(method, own(arguments...), wanted);
  }

  template <typename Ask>
  bool any_held_wants(const char* method, const Ask& ask) const {
    if (Running::of(this, method)) return false;  // it holds itself
    const Running running(this, method);
    return any_held(
        pybind11::cast(static_cast<const Base*>(this), pybind11::return_value_policy::reference),
        ask);
  }

  template <typename T>
  T returned(const char* method, const pybind11::object& value, const char* wanted) const {
    pybind11::detail::make_caster<T> caster;
    if (value.is_none() || !caster.load(value, true)) {
      throw InputError(name() + ": " + method + "() returned " +
                       pybind11::repr(value).cast<std::string>() + "; it must be " + wanted);
    }
    return pybind11::detail::cast_op<T>(std::move(caster));
  }
};

}  // namespace tabes::python
