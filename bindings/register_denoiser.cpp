#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include "bindings.h"
#include "tabes/checkpoint.h"
#include "tabes/denoiser.h"
#include "tabes/error.h"
#include "tabes/generate.h"

namespace tabes::python {
namespace {

namespace py = pybind11;

at::ScalarType dtype_named(const std::string& name) {
  if (name == "float32") return at::kFloat;
  if (name == "bfloat16") return at::kBFloat16;
  if (name == "float64") return at::kDouble;
  throw InputError("dtype '" + name + "' is unknown; use float32, bfloat16 or float64");
}

std::string dtype_name(at::ScalarType type) {
  return type == at::kFloat ? "float32" : type == at::kBFloat16 ? "bfloat16" : "float64";
}

at::Device device_named(const std::string& name) {
  try {
    return at::Device(name);
  } catch (const c10::Error&) {
    throw DeviceError("device '" + name + "' is unknown; use \"cpu\" or \"cuda\"");
  }
}

std::shared_ptr<const Denoiser> load_named(const std::string& directory, const std::string& device,
                                           const std::string& dtype,
                                           std::optional<int64_t> mask_token_id, bool prepack,
                                           std::function<void(int64_t, int64_t)> progress) {
  LoadOptions options{device_named(device), dtype_named(dtype), mask_token_id, prepack, {}};
  // Called after every tensor: a good moment to notice Ctrl-C as well.
  options.progress = [&, poll = signal_poll()](int64_t done, int64_t total) {
    poll();
    if (!progress) return;
    const py::gil_scoped_acquire locked;
    progress(done, total);
  };
  const py::gil_scoped_release unlocked;
  return load(directory, options);
}

}  // namespace

void register_denoiser(py::module_& m) {
  py::class_<ModelInfo>(m, "ModelInfo", "What a model is; see tabes.Model.info.")
      .def_readonly("family", &ModelInfo::family)
      .def_readonly("vocab_size", &ModelInfo::vocab_size)
      .def_readonly("hidden_size", &ModelInfo::hidden_size)
      .def_readonly("num_layers", &ModelInfo::num_layers)
      .def_readonly("max_length", &ModelInfo::max_length)
      .def_readonly("parameters", &ModelInfo::parameters)
      .def_readonly("mask_token_id", &ModelInfo::mask_token_id)
      .def_readonly("eos_token_ids", &ModelInfo::eos_token_ids)
      .def_property_readonly("eos_token_id",
                             [](const ModelInfo& i) {
                               return i.eos_token_ids.empty()
                                          ? std::nullopt
                                          : std::optional<int64_t>(i.eos_token_ids.front());
                             })
      .def_readonly("bos_token_id", &ModelInfo::bos_token_id)
      .def_readonly("pad_token_id", &ModelInfo::pad_token_id)
      .def_property_readonly("device", [](const ModelInfo& i) { return i.device.str(); })
      .def_property_readonly("dtype", [](const ModelInfo& i) { return dtype_name(i.dtype); });

  py::class_<Denoiser, std::shared_ptr<Denoiser>>(m, "Denoiser", "A frozen model.")
      .def_property_readonly("info", &Denoiser::info)
      .def("embedding_table", &Denoiser::embedding_table)
      .def(
          "logits",
          [](const Denoiser& model, const std::vector<at::Tensor>& sequences) {
            const py::gil_scoped_release unlocked;
            return logits(model, sequences);
          },
          py::arg("sequences"), "Packed logits [R, V] of 1-D int64 sequences.");

  m.def(
      "load",
      [](const std::string& directory, const std::string& device, const std::string& dtype,
         std::optional<int64_t> mask_token_id, bool prepack,
         std::function<void(int64_t, int64_t)> progress) {
        return std::const_pointer_cast<Denoiser>(
            load_named(directory, device, dtype, mask_token_id, prepack, std::move(progress)));
      },
      py::arg("directory"), py::arg("device") = "cpu", py::arg("dtype") = "float32",
      py::arg("mask_token_id") = std::nullopt, py::arg("prepack") = true,
      py::arg("progress") = nullptr, "Load a checkpoint folder.");
}

}  // namespace tabes::python
