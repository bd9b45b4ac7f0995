// Reading Hugging Face checkpoint folders: config.json plus safetensors, in one file or sharded,
// and what the tokenizer's files say beside the vocabulary.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tabes/denoiser.h"
#include "tabes/export.h"

namespace tabes {

struct LoadOptions {
  at::Device device = at::kCPU;
  at::ScalarType dtype = at::kFloat;
  // Overrides config.json where it has no (or a wrong) mask token, as older BERT checkpoints do.
  std::optional<int64_t> mask_token_id;
  // Overrides what the files say of the tokens that end a text; may be empty.
  std::optional<std::vector<int64_t>> eos_token_ids;
  // Tensors of the files to leave out, where they hold more than the model: names in which "*"
  // stands for any text.
  std::vector<std::string> ignore;
  // Called with one line that names heads which have no part in the logits and are left out.
  std::function<void(const std::string& line)> notice;
  // On x86 CPUs lay each weight out anew as it is read: faster products, forward and adjoint, from
  // one copy as large as the weight. Off: weights stay as they are, and what a product needs of
  // them is laid out on the way.
  bool prepack = true;
  // Called after each tensor with the bytes read so far and in all; it may throw to stop.
  std::function<void(int64_t done, int64_t total)> progress;
};

// Loads the model in the folder `directory`. Weights are read tensor by tensor into their final
// place: beside the model itself at most one tensor is in memory. Pickle files are never opened.
//
// Mask token: options, config.json, generation_config.json, the mask_token that the tokenizer's
// files name, the family's usual names for it in the vocabulary, the family's usual id.
// End tokens: options, or else all that config.json, generation_config.json, the eos_token of the
// tokenizer's files and the family's usual names say, in this order.
//
// A prefix that all tensor names share ("module.", "_orig_mod.") is passed over. Weights that are
// NaN or infinite are refused, save for -infinity in the bias of the vocabulary projection.
//
// Throws CheckpointError naming the file, the rule it breaks and, where known, the tensor;
// InputError for an option out of range, and for a pattern of `ignore` that fits nothing or a
// tensor that the model needs; DeviceError, before it reads a weight, if the model cannot fit in
// the memory that is free.
TABES_API std::shared_ptr<const Denoiser> load(const std::string& directory,
                                               const LoadOptions& options = {});

// The folder in `directory` that holds a checkpoint: itself, or if it is the root of a repository
// in the Hub's cache the snapshot that refs/main names, or else the only one. Throws
// CheckpointError if there are several and refs/main names none.
TABES_API std::string checkpoint_folder(const std::string& directory);

// A token that was added to a vocabulary, with the flags that tokenizers have for it.
struct AddedToken {
  int64_t id = 0;
  std::string content;
  bool special = false;  // not part of a text: left out when ids become text
  bool lstrip = false, rstrip = false;
  bool single_word = false;
  bool normalized = true;
};

// What tokenizer_config.json, special_tokens_map.json and added_tokens.json say. As transformers
// has it, the two older files count only where tokenizer_config.json has no added_tokens_decoder,
// save for names that it lacks.
struct TokenizerSettings {
  std::map<std::string, std::string> named_tokens;  // "mask_token" -> "[MASK]"
  std::vector<std::string> additional_special_tokens;
  std::vector<AddedToken> added_tokens;  // by id
  std::optional<bool> do_lower_case, strip_accents, tokenize_chinese_chars;
  std::string tokenizer_class;               // empty if none is named
  std::optional<std::string> chat_template;  // of several the one called "default"
};

// Missing files say nothing. Throws CheckpointError naming file and key.
TABES_API TokenizerSettings read_tokenizer_settings(const std::string& directory);

// Whether a token of this name is no text: [UNK], <pad>, </s>, [unused7] and the like.
TABES_API bool names_special_token(std::string_view name);

}  // namespace tabes
