// Fuzzes every parser of texts that people bring: safetensors files (touching each byte their
// tensors claim, which parsing alone would not), indexes, configs, tokenizers, and policies in
// their notation (which must come back as written). Anything but a normal return, CheckpointError
// of a file or InputError of a notation is a bug.
//
// With clang: -fsanitize=fuzzer,address,undefined. Any other compiler: -DTABES_FUZZ_STANDALONE adds
// a main() that mutates built-in seeds; `fuzz_parsers [iterations] [seed]`.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "checkpoint/config.h"
#include "checkpoint/families.h"
#include "checkpoint/plan.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/tensor_store.h"
#include "checkpoint/tokenizer_files.h"
#include "tabes/error.h"
#include "tabes/policy.h"

namespace {

using namespace tabes::checkpoint;

const std::string kFile = "fuzz";
volatile uint64_t sink = 0;

void read_safetensors(std::string_view bytes) {
  const uint64_t length = parse_header_length(bytes.substr(0, 64), bytes.size(), kFile);
  const std::string_view data = bytes.substr(8 + length);
  for (const TensorInfo& info : parse_header(bytes.substr(8, length), data.size(), kFile)) {
    if (info.end > data.size() || info.begin > info.end) std::abort();
    uint64_t elements = 1;
    for (const int64_t size : info.shape) {
      if (size < 0) std::abort();
      elements *= static_cast<uint64_t>(size);
    }
    if (elements > info.bytes()) std::abort();
    for (uint64_t i = info.begin; i < info.end; ++i) sink = sink + static_cast<uint8_t>(data[i]);
  }
}

void read_index(std::string_view text) {
  for (const auto& [tensor, shard] : parse_index(text, kFile)) {
    if (shard.find('/') != shard.npos || shard == "..") std::abort();
  }
}

void read_config(std::string_view text) {
  const Config config(text, kFile);
  for (const Family* family : families()) {
    try {
      const tabes::TransformerConfig model = family->parse(config);
      if (model.hidden_size < 1 || model.num_heads * model.head_dim != model.hidden_size)
        std::abort();
      if (model.num_layers <= 64) sink = sink + tensor_specs(model).size();
    } catch (const tabes::CheckpointError&) {
    }
  }
}

void read_tokenizer(std::string_view text) {
  sink = sink + parse_vocab_txt(text, kFile).find("[MASK]").has_value();
  sink = sink + parse_tokenizer(text, kFile).find("[MASK]").has_value();
}

void read_tokenizer_config(std::string_view text) {
  const tabes::TokenizerSettings settings = parse_tokenizer_config(Config(text, kFile));
  for (const tabes::AddedToken& token : settings.added_tokens) {
    if (token.id < 0 || token.content.empty()) std::abort();
    sink = sink + tabes::names_special_token(token.content);
  }
  for (const auto& [key, name] : settings.named_tokens) sink = sink + name.size();
  sink = sink + settings.chat_template.value_or("").size();
}

void read_added_tokens(std::string_view text) {
  for (const tabes::AddedToken& token : parse_added_tokens(text, kFile, {"[ENT]"})) {
    if (token.id < 0) std::abort();
  }
}

void read_policy(std::string_view given) {
  std::string text;
  try {
    text = tabes::notation(*tabes::make_policy(std::string(given)));
  } catch (const tabes::InputError&) {
    return;
  }
  if (tabes::notation(*tabes::make_policy(text)) != text) std::abort();
}

using Target = void (*)(std::string_view);
constexpr Target kTargets[] = {
    read_safetensors,      read_index,        read_config, read_tokenizer,
    read_tokenizer_config, read_added_tokens, read_policy};

}  // namespace

// The first byte chooses the parser, the rest is its input.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view input(reinterpret_cast<const char*>(data) + 1, size - 1);
  try {
    kTargets[data[0] % std::size(kTargets)](input);
  } catch (const tabes::CheckpointError& error) {
    sink = sink + std::string_view(error.what()).size();
  }
  return 0;
}

#ifdef TABES_FUZZ_STANDALONE
#include <cstdio>
#include <random>
#include <vector>

namespace {

using Random = std::mt19937_64;

std::string safetensors_file(const std::string& header, size_t data) {
  std::string out(1, '\0');
  for (int i = 0; i < 8; ++i) out += static_cast<char>(uint64_t{header.size()} >> (8 * i));
  return out + header + std::string(data, 'x');
}

std::vector<std::string> seeds() {
  return {
      safetensors_file(R"({"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
                       R"("b":{"dtype":"BF16","shape":[],"data_offsets":[24,26]},)"
                       R"("__metadata__":{"format":"pt"}})",
                       26),
      safetensors_file(R"({"e":{"dtype":"I64","shape":[0,4],"data_offsets":[0,0]}}   )", 0),
      std::string("\1") + R"({"metadata":{"total_size":8},"weight_map":)"
                          R"({"x.weight":"a-1.safetensors","y":"b.safetensors"}})",
      std::string("\2") +
          R"({"model_type":"llada","d_model":8,"n_layers":2,"n_heads":4,"n_kv_heads":2,)"
          R"("mlp_hidden_size":16,"vocab_size":11,"embedding_size":12,"max_sequence_length":32,)"
          R"("rope_theta":1e4,"rms_norm_eps":1e-5,"eos_token_id":[1,2],"weight_tying":false})",
      std::string("\2") +
          R"({"model_type":"bert","hidden_size":8,"num_hidden_layers":1,"num_attention_heads":2,)"
          R"("intermediate_size":16,"vocab_size":10,"max_position_embeddings":20,)"
          R"("hidden_act":"gelu","layer_norm_eps":1e-12,"pruned_heads":{}})",
      std::string("\3") + R"({"added_tokens":[{"id":3,"content":"<mask>"}],)"
                          R"("model":{"vocab":{"a":0,"[MASK]":4}}})",
      std::string("\3") + R"({"model":{"type":"Unigram","vocab":[["<unk>",0],["[MASK]",-1.5]]}})",
      std::string("\3") + "[PAD]\r\n[UNK]\n[MASK]\n",
      std::string("\4") +
          R"({"mask_token":{"content":"[MASK]"},"eos_token":"</s>","do_lower_case":true,)"
          R"("additional_special_tokens":["<a>",{"content":"<b>"}],"extra_special_tokens":{},)"
          R"("added_tokens_decoder":{"7":{"content":"<a>","special":true,"lstrip":false}},)"
          R"("chat_template":[{"name":"default","template":"{{ messages }}"}]})",
      std::string("\5") + R"({"[ENT]":93,"covid19":94})",
      std::string("\6") + "threshold(tau=0.9)",
      std::string("\6") + "boe(alpha=0.3,0.5; n_candidates=3x; probes=nearest; context=frozen)",
      std::string("\6") + "remdm_loop(t_on=0.5; t_off=0.1; alpha_on=0.9)",
  };
}

// Pieces that byte flips would take long to come up with.
constexpr std::string_view kWords[] = {"18446744073709551615",
                                       "9223372036854775807",
                                       "4294967296",
                                       "-1",
                                       "0",
                                       "1e999",
                                       "-0",
                                       "null",
                                       "true",
                                       "[]",
                                       "{}",
                                       "[",
                                       "{",
                                       "\"",
                                       "\\u0000",
                                       "\\ud800",
                                       "\xff",
                                       ",",
                                       ":",
                                       "../",
                                       "F4",
                                       "BOOL",
                                       "\"a\":",
                                       "\"dtype\":\"U8\"",
                                       "\"shape\":[0]",
                                       "\"data_offsets\":[0,0]",
                                       "__metadata__",
                                       "=",
                                       ";",
                                       "(",
                                       ")",
                                       "3x",
                                       "nan",
                                       "boe_paper",
                                       "gamma=1e-320"};

void mutate(std::string& s, Random& random) {
  const auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
  for (size_t edits = 1 + below(4); edits > 0; --edits) {
    const size_t at = 1 + below(s.size());  // the target byte stays
    const size_t count = std::min(s.size() - at, below(12));
    switch (below(6)) {
      case 0:
        if (at < s.size()) s[at] = static_cast<char>(s[at] ^ (1 << below(8)));
        break;
      case 1:
        s.erase(at, count);
        break;
      case 2:
        s.insert(at, s.substr(at, count));
        break;
      case 3:
        s.insert(at, kWords[below(std::size(kWords))]);
        break;
      case 4:
        s.replace(at, count, kWords[below(std::size(kWords))]);
        break;
      case 5:
        s.insert(at, s.substr(1 + below(s.size()), below(64)));
        break;
    }
  }
  // A header that moved its own length would nearly always fail at once: set it right mostly.
  if (s[0] == 0 && s.size() > 9 && below(8) != 0) {
    const size_t end = s.rfind('}') == s.npos ? s.size() : s.rfind('}') + 1;
    const uint64_t length = end > 9 ? end - 9 : 0;
    for (int i = 0; i < 8; ++i) s[1 + i] = static_cast<char>(length >> (8 * i));
  }
}

}  // namespace

int main(int argc, char** argv) {
  const long iterations = argc > 1 ? std::atol(argv[1]) : 100'000;
  Random random(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1);
  const std::vector<std::string> corpus = seeds();
  for (long i = 0; i < iterations; ++i) {
    std::string input = corpus[random() % corpus.size()];
    mutate(input, random);
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
  }
  std::printf("%ld inputs, no findings\n", iterations);
}
#endif
