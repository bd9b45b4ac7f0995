// One function a class, called by module.cpp.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include "tabes/policy.h"

namespace tabes::python {

void register_errors(pybind11::module_& m);
void register_denoiser(pybind11::module_& m);
void register_policy(pybind11::module_& m);
void register_generate(pybind11::module_& m);
void register_influence(pybind11::module_& m);

// Settings given by name in Python: numbers of any library, lists of them, and text. What is none
// of these is written out, for the core to refuse by name.
PolicySettings policy_settings(const pybind11::dict& given);
// A setting's value as Python has it.
pybind11::object setting_object(const SettingValue& value);

// A poll for long computations: lets Python handle Ctrl-C. It takes the interpreter lock at most
// every 20 ms, since waiting for it costs other threads and us time.
std::function<void()> signal_poll();

}  // namespace tabes::python
