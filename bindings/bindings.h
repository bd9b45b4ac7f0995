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

// Objects travel by pickle's protocols from 2 on, also where an older one is asked for: in those
// Python makes an instance of pybind11's base class, which ends the process.
template <typename Class>
void def_protocol(Class&& cls) {
  namespace py = pybind11;
  cls.def("__reduce_ex__", [](const py::object& self, int protocol) {
    const py::object base = py::module_::import("builtins").attr("object");
    return base.attr("__reduce_ex__")(self, protocol < 2 ? 2 : protocol);
  });
}

// A poll for long computations: lets Python handle Ctrl-C. It takes the interpreter lock at most
// every 20 ms, since waiting for it costs other threads and us time.
std::function<void()> signal_poll();

}  // namespace tabes::python
