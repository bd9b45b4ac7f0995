// Finding the id of the mask token, which checkpoints state in many places or not at all.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "checkpoint/config.h"
#include "checkpoint/families.h"

namespace tabes::checkpoint {

// The line number of the first of `texts` in a vocab.txt that has one of them, or nothing.
std::optional<int64_t> mask_in_vocab_txt(std::string_view text,
                                         const std::vector<std::string_view>& texts);

// The id of the first of `texts` among the added tokens, or else in the vocabulary, of a
// tokenizer.json. Throws CheckpointError if that is no JSON.
std::optional<int64_t> mask_in_tokenizer(std::string_view text, const std::string& file,
                                         const std::vector<std::string_view>& texts);

// The mask token of the checkpoint in `folder`: `requested` if given, else what config.json,
// generation_config.json, tokenizer.json or vocab.txt say, else what is usual for the family.
// Throws InputError if `requested` is no token of the model, CheckpointError if nothing is found.
int64_t find_mask_token(const std::string& folder, const Config& config, const Family& family,
                        const TransformerConfig& model, std::optional<int64_t> requested);

}  // namespace tabes::checkpoint
