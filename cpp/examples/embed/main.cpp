// Decodes from C++: embed CHECKPOINT TOKEN TOKEN ... fills every mask among the tokens.
#include <ATen/ops/empty.h>
#include <tabes/tabes.h>

#include <charconv>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <string>

namespace {

int64_t token_id(const char* written) {
  int64_t id = 0;
  const char* end = written + std::strlen(written);
  const auto [stop, error] = std::from_chars(written, end, id);
  if (error != std::errc() || stop != end) {
    throw tabes::InputError("'" + std::string(written) + "' is not a token id");
  }
  return id;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: embed CHECKPOINT TOKEN...\n");
    return 2;
  }
  try {
    const auto model = tabes::load(argv[1]);
    at::Tensor tokens = at::empty({argc - 2}, at::kLong);
    for (int i = 2; i < argc; ++i) tokens.data_ptr<int64_t>()[i - 2] = token_id(argv[i]);
    tabes::GenerateOptions options;
    options.steps = 16;
    options.policy = std::make_shared<tabes::BoE>();
    const tabes::GenerateResult result = tabes::generate(*model, {tokens}, options);
    for (int64_t i = 0; i < tokens.size(0); ++i) {
      std::printf("%lld ", static_cast<long long>(result.tokens[0].const_data_ptr<int64_t>()[i]));
    }
    std::printf("\nforward equivalents: %.1f\n", result.forward_equivalents);
    return 0;
  } catch (const tabes::Error& e) {  // a bad checkpoint, argument or device: the message says which
    std::fprintf(stderr, "embed: %s\n", e.what());
    return 1;
  } catch (const std::exception& e) {  // memory, or a fault of tabes or LibTorch
    std::fprintf(stderr, "embed: unexpected error: %s\n", e.what());
    return 3;
  } catch (...) {
    std::fprintf(stderr, "embed: unknown error\n");
    return 3;
  }
}
