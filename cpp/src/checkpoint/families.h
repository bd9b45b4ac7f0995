// The model families tabes reads. Supporting another one means describing it in a file of its own
// and listing it in families.cpp.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint/config.h"
#include "checkpoint/tensor_store.h"
#include "tabes/transformer.h"

namespace tabes::checkpoint {

// Where our tensor is in the files. In both names "{}" stands for the layer number. A rule may
// leave out a final ".weight" or ".bias", which then carries over ("gamma" and "beta", as in old
// files, are tried too). The first rule that leads to a tensor wins.
struct NameRule {
  std::string_view ours;
  std::string_view theirs;
};

// A tensor that repeats another one (the decoder of a model with tied embeddings, say). It may be
// in the files, but only with the same content.
struct Copy {
  std::string_view of;      // our name
  std::string_view theirs;  // its name in the files
};

struct Family {
  std::string_view name;
  std::vector<std::string_view> model_types;    // values of config.json's model_type
  std::vector<std::string_view> architectures;  // consulted if there is no model_type
  std::string_view telltale;  // a tensor only this family has, for configs with neither
  // What all names begin with, and lack where only what is inside was saved; empty if nothing.
  std::string_view outer;

  // Everything but the mask token. Throws CheckpointError.
  TransformerConfig (*parse)(const Config& config);

  std::vector<NameRule> names;
  // Tensors without a part in the logits, "*" = anything: other heads, and buffers made of nothing
  // but the config.
  std::vector<std::string_view> heads, buffers;
  std::vector<Copy> (*copies)(const TransformerConfig& model);

  std::vector<std::string_view> mask_texts;  // the mask token as it is spelled in vocabularies
  // The mask token of checkpoints whose files do not say, or -1.
  int64_t (*usual_mask_token)(const TransformerConfig& model);
  // End tokens beside those that the files name: as they are spelled, and of checkpoints without a
  // vocabulary.
  std::vector<std::string_view> eos_texts;
  std::vector<int64_t> (*usual_eos_tokens)(const TransformerConfig& model);
  // Names of other tokens where the tokenizer's files do not say: key and text.
  std::vector<std::pair<std::string_view, std::string_view>> usual_names;
  // Whether special tokens are no part of any text, so that the model is not to write them: see
  // ModelInfo::special_token_ids.
  bool keeps_special_apart;
};

const std::vector<const Family*>& families();

// The family that `config` or, failing that, the tensor names announce. Throws CheckpointError.
const Family& detect_family(const Config& config, const TensorStore& tensors);

// The architecture that config.json names, if it is none of the family's.
std::optional<std::string> foreign_architecture(const Config& config, const Family& family);

// The telltales of all families, then those of models saved without their outer name.
std::vector<std::string_view> telltales();

// Names under which our tensor `name` may be in this family's files, in order of preference.
std::vector<std::string> candidate_names(const Family& family, std::string_view name);

// `name`, which lives on, without the family's outer name.
std::string_view inner(const Family& family, std::string_view name);

// Whether `text` matches `pattern`, in which "*" stands for any text.
bool matches(std::string_view pattern, std::string_view text);

const Family& llada_family();
const Family& bert_family();

}  // namespace tabes::checkpoint
