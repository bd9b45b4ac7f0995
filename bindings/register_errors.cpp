#include <c10/util/Exception.h>
#include <torch/csrc/Exceptions.h>

#include "bindings.h"
#include "tabes/error.h"

namespace tabes::python {
namespace {

namespace py = pybind11;

// The Python classes, of tabes/errors.py; they live as long as the interpreter.
PyObject *error, *checkpoint_error, *input_error, *numerics_error, *device_error;

PyObject* take(py::module_& m, const py::module_& errors, const char* name) {
  py::object type = errors.attr(name);
  m.attr(name) = type;
  return type.release().ptr();
}

}  // namespace

void register_errors(py::module_& m) {
  const auto errors = py::module_::import("tabes.errors");
  error = take(m, errors, "Error");
  checkpoint_error = take(m, errors, "CheckpointError");
  input_error = take(m, errors, "InputError");
  numerics_error = take(m, errors, "NumericsError");
  device_error = take(m, errors, "DeviceError");
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (python_error& e) {
      // From a Python function in autograd's backward pass. The engine has usually restored it.
      e.restore();
    } catch (const CheckpointError& e) {
      PyErr_SetString(checkpoint_error, e.what());
    } catch (const InputError& e) {
      PyErr_SetString(input_error, e.what());
    } catch (const NumericsError& e) {
      PyErr_SetString(numerics_error, e.what());
    } catch (const DeviceError& e) {
      PyErr_SetString(device_error, e.what());
    } catch (const Error& e) {
      PyErr_SetString(error, e.what());
    } catch (const c10::OutOfMemoryError& e) {
      PyErr_SetString(device_error, e.what_without_backtrace());
    } catch (const c10::Error& e) {
      PyErr_SetString(error, e.what_without_backtrace());
    }
  });
}

}  // namespace tabes::python
