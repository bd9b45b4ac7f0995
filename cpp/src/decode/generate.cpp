#include "tabes/generate.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>

#include "batch/rows.h"
#include "decode/device_loop.h"
#include "decode/loop.h"
#include "forked.h"
#include "messages.h"
#include "out_of_memory.h"
#include "plain_dispatch.h"

namespace tabes {
namespace {

// Rows a sequence are rounded up to this, so that few shapes are recorded. Passes over fewer rows
// than about 240 take the time in which the weights are read, however many rows there are.
constexpr int64_t kReplayBucket = 32;

GenerateResult decoded(const Denoiser& model, const std::vector<at::Tensor>& sequences,
                       const GenerateOptions& options) {
  Decode decode(model, sequences, options);
  const std::string why_not = decode.bound_to_host();
  if (options.on_device.value_or(false) && !why_not.empty()) {
    refuse("rows cannot be selected on the device: ", why_not);
  }
  // Bounds in the place of numbers cost rows, which are dearer than a wait for the host.
  const bool worth = model.info().device.is_cuda() && why_not.empty() && decode.knows_counts();
  const bool on_device = options.on_device.value_or(worth);
  if (options.cuda_graphs && model.is_replayable()) {
    decode.replay_passes();
  } else if (options.cuda_graphs) {
    refuse("cuda_graphs=true, but this model ('", model.info().family, "' on ", model.info().device,
           ") has no passes that can be recorded; load a native model with "
           "device=\"cuda\", or leave cuda_graphs out");
  }
  if (!on_device) return Loop(std::move(decode)).run();
  const int64_t bucket = decode.replays_passes() ? kReplayBucket : 1;
  return DeviceLoop(std::move(decode), bucket).run();
}

}  // namespace

GenerateResult generate(const Denoiser& model, const std::vector<at::Tensor>& sequences,
                        const GenerateOptions& options) {
  enter(model.info().device);
  return within_memory([&] { return decoded(model, sequences, options); },
                       [&] {
                         return text("out of memory on ", model.info().device, " for ",
                                     sequences.size(), " sequences: decode fewer at a time");
                       });
}

at::Tensor with_masks(const Denoiser& model, const at::Tensor& prompt, int64_t gen_length) {
  if (!is_token_row(prompt)) refuse("the prompt must be a 1-D tensor of integer token ids");
  const ModelInfo& info = model.info();
  if (gen_length < 1) refuse("gen_length must be at least 1, not ", gen_length);
  if (prompt.size(0) > info.max_length || gen_length > info.max_length - prompt.size(0)) {
    refuse("a prompt of ", prompt.size(0), " tokens and gen_length ", gen_length,
           " exceed the model's ", info.max_length, " positions");
  }
  return within_memory(
      [&] {
        const at::Tensor masks = at::full({gen_length}, info.mask_token_id, at::kLong);
        return at::cat({prompt.to(at::kCPU, at::kLong), masks});
      },
      [&] { return text("out of memory for ", gen_length, " masks: lower gen_length"); });
}

at::Tensor logits(const Denoiser& model, const std::vector<at::Tensor>& sequences) {
  enter(model.info().device);
  const PlainDispatch plain;
  return within_memory(
      [&] {
        const std::vector<HostTokens> tokens = checked_tokens(model.info(), sequences);
        std::vector<const HostTokens*> pointers;
        for (const HostTokens& t : tokens) pointers.push_back(&t);
        const PackedBatch batch = pack(pointers, model.info().device);
        const at::Tensor out = model.project(model.encode(batch, all_rows(batch)));
        return out.scalar_type() == at::kDouble ? out : out.to(at::kFloat);
      },
      [&] {
        return text("out of memory on ", model.info().device, " for the logits of ",
                    sequences.size(), " sequences: pass fewer at a time, or shorter ones");
      });
}

}  // namespace tabes
