#include <chrono>

#include "bindings.h"
#include "tabes/version.h"

namespace tabes::python {

std::function<void()> signal_poll() {
  using Clock = std::chrono::steady_clock;
  return [next = Clock::now() + std::chrono::milliseconds(20)]() mutable {
    if (Clock::now() < next) return;
    {
      const pybind11::gil_scoped_acquire locked;
      if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
    }
    next = Clock::now() + std::chrono::milliseconds(20);
  };
}

}  // namespace tabes::python

PYBIND11_MODULE(_core, m) {
  m.doc() = "The compiled core of tabes; use the package tabes.";
  m.attr("version") = tabes::version();
  m.attr("built_for_torch") = TABES_TORCH_VERSION;
  tabes::python::register_errors(m);
  tabes::python::register_denoiser(m);
  tabes::python::register_policy(m);
  tabes::python::register_generate(m);
  tabes::python::register_influence(m);
}
