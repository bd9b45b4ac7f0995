// One function a class, called by module.cpp.
#pragma once

#include <torch/csrc/utils/pybind.h>

namespace tabes::python {

void register_errors(pybind11::module_& m);
void register_denoiser(pybind11::module_& m);
void register_policy(pybind11::module_& m);
void register_generate(pybind11::module_& m);
void register_influence(pybind11::module_& m);

// A poll for long computations: lets Python handle Ctrl-C. It takes the interpreter lock at most
// every 20 ms, since waiting for it costs other threads and us time.
std::function<void()> signal_poll();

}  // namespace tabes::python
