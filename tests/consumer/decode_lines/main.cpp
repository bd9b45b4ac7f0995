// decode_lines CHECKPOINT: a decode for every line of standard input, its tokens and rows as a line
// of standard output. A line is a policy, a tab, and then
//   steps block_length(0: none) refresh_every seed temperature top_k top_p cfg_scale
//   logits_eos_inf confidence_eos_eot_inf, a list of forbidden tokens, how many sequences there
//   are, and each as a list. Lists are their length and then their numbers.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <tabes/tabes.h>

#include <algorithm>
#include <exception>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

template <typename T>
T next(std::istringstream& in) {
  T value{};
  if (!(in >> value)) throw std::runtime_error("a number is missing");
  return value;
}

std::vector<int64_t> list(std::istringstream& in) {
  std::vector<int64_t> values(next<size_t>(in));
  for (int64_t& value : values) value = next<int64_t>(in);
  return values;
}

std::string decoded(const tabes::Denoiser& model, const std::string& line) {
  const size_t tab = line.find('\t');
  if (tab == std::string::npos) throw std::runtime_error("there is no tab");
  std::istringstream in(line.substr(tab + 1));
  tabes::GenerateOptions options;
  options.policy = tabes::make_policy(line.substr(0, tab));
  options.steps = next<int64_t>(in);
  if (const auto length = next<int64_t>(in); length > 0) options.block_length = length;
  options.refresh_every = next<int64_t>(in);
  options.seed = next<uint64_t>(in);
  options.temperature = next<double>(in);
  options.top_k = next<int64_t>(in);
  options.top_p = next<double>(in);
  options.cfg_scale = next<double>(in);
  options.logits_eos_inf = next<bool>(in);
  options.confidence_eos_eot_inf = next<bool>(in);
  options.forbidden = list(in);
  std::vector<at::Tensor> sequences(next<size_t>(in));
  for (at::Tensor& sequence : sequences) {
    const std::vector<int64_t> tokens = list(in);
    sequence = at::empty({static_cast<int64_t>(tokens.size())}, at::kLong);
    std::copy(tokens.begin(), tokens.end(), sequence.data_ptr<int64_t>());
  }
  const tabes::GenerateResult result = tabes::generate(model, sequences, options);
  std::ostringstream out;
  for (const at::Tensor& tokens : result.tokens) {
    for (int64_t i = 0; i < tokens.size(0); ++i) out << tokens.const_data_ptr<int64_t>()[i] << ' ';
  }
  out << result.cost.forward_rows << ' ' << result.cost.backward_rows;
  return out.str();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  at::set_num_threads(1);
  try {
    const auto model = tabes::load(argv[1]);
    for (std::string line; std::getline(std::cin, line);) {
      try {
        std::cout << decoded(*model, line) << std::endl;
      } catch (const std::exception& e) {
        std::cout << "error: " << e.what() << std::endl;
      }
    }
    return 0;
  } catch (const std::exception& e) {
    std::cerr << "decode_lines: " << e.what() << '\n';
    return 1;
  }
}
