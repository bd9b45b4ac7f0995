#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include "records.h"
#include "tabes/checkpoint.h"
#include "tabes/denoiser.h"
#include "tabes/error.h"
#include "tabes/generate.h"
#include "tabes/module_denoiser.h"

namespace tabes::python {
namespace {

namespace py = pybind11;

at::ScalarType dtype_named(const std::string& name) {
  if (name == "float32") return at::kFloat;
  if (name == "bfloat16") return at::kBFloat16;
  if (name == "float16") return at::kHalf;
  if (name == "float64") return at::kDouble;
  throw InputError("dtype '" + name + "' is unknown; use float32, bfloat16, float16 or float64");
}

std::string dtype_name(at::ScalarType type) {
  return type == at::kFloat      ? "float32"
         : type == at::kBFloat16 ? "bfloat16"
         : type == at::kHalf     ? "float16"
                                 : "float64";
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
                                           std::optional<int64_t> mask_token_id,
                                           std::optional<std::vector<int64_t>> eos_token_ids,
                                           std::vector<std::string> ignore, bool prepack,
                                           std::function<void(int64_t, int64_t)> progress,
                                           std::function<void(const std::string&)> notice) {
  LoadOptions options;
  options.device = device_named(device);
  options.dtype = dtype_named(dtype);
  options.mask_token_id = mask_token_id;
  options.eos_token_ids = std::move(eos_token_ids);
  options.ignore = std::move(ignore);
  options.prepack = prepack;
  if (notice) {
    options.notice = [&](const std::string& line) {
      const py::gil_scoped_acquire locked;
      notice(line);
    };
  }
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

// A Python function (embeddings, tokens, active, cu_active) -> logits. pybind11 takes the
// interpreter lock for the call and for letting go of the function.
using PythonFunction =
    std::function<at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                             const std::vector<int64_t>&)>;

ModuleFunction module_function(PythonFunction function) {
  return [function = std::move(function)](const ModuleCall& call) {
    if (!call.active) return function(call.embeddings, call.tokens, std::nullopt, {});
    return function(call.embeddings, call.tokens, call.active->rows, call.active->cu_rows);
  };
}

}  // namespace

void register_denoiser(py::module_& m) {
  py::class_<ModelInfo> info(m, "ModelInfo", "What a model is: `tabes.Model.info`.");
  def_fields(
      info,
      Field{"family", &ModelInfo::family,
            "The architecture: \"llada\", \"bert\", or the wrapped class."},
      Field{"vocab_size", &ModelInfo::vocab_size, "Width of the logits, V."},
      Field{"hidden_size", &ModelInfo::hidden_size, "Width of the input embeddings, D."},
      Field{"num_layers", &ModelInfo::num_layers, "Transformer layers."},
      Field{"max_length", &ModelInfo::max_length,
            "The longest sequence that the model was made for, in tokens."},
      Field{"parameters", &ModelInfo::parameters, "Number of weights."},
      Field{"mask_token_id", &ModelInfo::mask_token_id, "The token of positions to fill."},
      Field{"eos_token_ids", &ModelInfo::eos_token_ids, "Tokens that end a text; may be empty."},
      Field{"bos_token_id", &ModelInfo::bos_token_id, "The token that begins a text, or None."},
      Field{"pad_token_id", &ModelInfo::pad_token_id, "The padding token, or None."},
      Field{"special_token_ids", &ModelInfo::special_token_ids,
            "Tokens that are no part of a text, which are not written unless they are allowed."});
  info.def_property_readonly(
          "eos_token_id",
          [](const ModelInfo& i) {
            return i.eos_token_ids.empty() ? std::nullopt
                                           : std::optional<int64_t>(i.eos_token_ids.front());
          },
          "The first of `eos_token_ids`, or None.")
      .def_property_readonly(
          "device", [](const ModelInfo& i) { return i.device.str(); },
          "Where the weights are, as \"cpu\" or \"cuda:0\".")
      .def_property_readonly(
          "dtype", [](const ModelInfo& i) { return dtype_name(i.dtype); },
          "Of weights and computation, as \"float32\".")
      .def("__repr__", [](const ModelInfo& i) {
        return "ModelInfo(" + i.family + ", " + std::to_string(i.parameters) + " parameters, " +
               std::to_string(i.num_layers) + " layers, vocabulary " +
               std::to_string(i.vocab_size) + ", mask " + std::to_string(i.mask_token_id) +
               ", at most " + std::to_string(i.max_length) + " tokens, " + dtype_name(i.dtype) +
               " on " + i.device.str() + ")";
      });
  def_pickle(info, &ModelInfo::family, &ModelInfo::vocab_size, &ModelInfo::hidden_size,
             &ModelInfo::num_layers, &ModelInfo::max_length, &ModelInfo::parameters,
             &ModelInfo::mask_token_id, &ModelInfo::eos_token_ids, &ModelInfo::bos_token_id,
             &ModelInfo::pad_token_id, &ModelInfo::special_token_ids, &ModelInfo::logit_shift,
             &ModelInfo::device, &ModelInfo::dtype);

  py::class_<Denoiser, std::shared_ptr<Denoiser>> denoiser(m, "Denoiser", "A frozen model.");
  def_protocol(denoiser);
  denoiser.def_property_readonly("info", &Denoiser::info)
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
         std::optional<int64_t> mask_token_id, std::optional<std::vector<int64_t>> eos_token_ids,
         std::vector<std::string> ignore, bool prepack,
         std::function<void(int64_t, int64_t)> progress,
         std::function<void(const std::string&)> notice) {
        return std::const_pointer_cast<Denoiser>(
            load_named(directory, device, dtype, mask_token_id, std::move(eos_token_ids),
                       std::move(ignore), prepack, std::move(progress), std::move(notice)));
      },
      py::arg("directory"), py::arg("device") = "cpu", py::arg("dtype") = "float32", py::kw_only(),
      py::arg("mask_token_id") = std::nullopt, py::arg("eos_token_ids") = std::nullopt,
      py::arg("ignore") = std::vector<std::string>{}, py::arg("prepack") = true,
      py::arg("progress") = nullptr, py::arg("notice") = nullptr, "Load a checkpoint folder.");
  m.def(
      "checkpoint_folder",
      [](const std::string& directory) { return py::bytes(checkpoint_folder(directory)); },
      py::arg("directory"),
      "The folder in `directory` that holds a checkpoint: itself, or a snapshot of the hub's "
      "cache.");

  py::class_<AddedToken> added(m, "AddedToken", "A token that was added to a vocabulary.");
  def_protocol(added);
  added.def_readonly("id", &AddedToken::id)
      .def_readonly("content", &AddedToken::content)
      .def_readonly("special", &AddedToken::special)
      .def_readonly("lstrip", &AddedToken::lstrip)
      .def_readonly("rstrip", &AddedToken::rstrip)
      .def_readonly("single_word", &AddedToken::single_word)
      .def_readonly("normalized", &AddedToken::normalized);

  py::class_<TokenizerSettings> settings(m, "TokenizerSettings",
                                         "What a tokenizer's files say beside its vocabulary.");
  def_protocol(settings);
  settings.def_readonly("named_tokens", &TokenizerSettings::named_tokens)
      .def_readonly("additional_special_tokens", &TokenizerSettings::additional_special_tokens)
      .def_readonly("added_tokens", &TokenizerSettings::added_tokens)
      .def_readonly("do_lower_case", &TokenizerSettings::do_lower_case)
      .def_readonly("strip_accents", &TokenizerSettings::strip_accents)
      .def_readonly("tokenize_chinese_chars", &TokenizerSettings::tokenize_chinese_chars)
      .def_readonly("tokenizer_class", &TokenizerSettings::tokenizer_class)
      .def_readonly("chat_template", &TokenizerSettings::chat_template);
  m.def("read_tokenizer_settings", &read_tokenizer_settings, py::arg("directory"),
        "What tokenizer_config.json, special_tokens_map.json and added_tokens.json say.");
  m.def("names_special_token", &names_special_token, py::arg("name"),
        "Whether a token of this name is no text: [UNK], <pad>, </s>, [unused7] and the like.");

  m.def(
      "module_denoiser",
      [](PythonFunction function, const at::Tensor& embedding_table, std::string family,
         int64_t mask_token_id, int64_t max_length, int64_t num_layers, int64_t parameters,
         std::vector<int64_t> eos_token_ids, std::optional<int64_t> bos_token_id,
         std::optional<int64_t> pad_token_id, std::vector<int64_t> special_token_ids,
         bool logit_shift) {
        ModelInfo info;
        info.family = std::move(family);
        info.mask_token_id = mask_token_id;
        info.max_length = max_length;
        info.num_layers = num_layers;
        info.parameters = parameters;
        info.eos_token_ids = std::move(eos_token_ids);
        info.bos_token_id = bos_token_id;
        info.pad_token_id = pad_token_id;
        info.special_token_ids = std::move(special_token_ids);
        info.logit_shift = logit_shift;
        return std::static_pointer_cast<Denoiser>(std::make_shared<ModuleDenoiser>(
            std::move(info), embedding_table, module_function(std::move(function))));
      },
      py::arg("function"), py::arg("embedding_table"), py::kw_only(), py::arg("family"),
      py::arg("mask_token_id"), py::arg("max_length"), py::arg("num_layers"), py::arg("parameters"),
      py::arg("eos_token_ids"), py::arg("bos_token_id"), py::arg("pad_token_id"),
      py::arg("special_token_ids"), py::arg("logit_shift"),
      "A model made of a table of input embeddings and a function from embeddings to logits.");
}

}  // namespace tabes::python
