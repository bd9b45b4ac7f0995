#include "decode/canvas.h"

namespace tabes {

Layout lay_out(const std::vector<Canvas*>& canvases, const ModelInfo& info) {
  Layout layout;
  std::vector<const HostTokens*> tokens;
  std::vector<int64_t> rows, cu_rows{0};
  int64_t offset = 0;
  for (const Canvas* c : canvases) {
    for (int64_t i = c->schedule.begin(); i < c->schedule.end(); ++i) {
      if (c->tokens[i] != info.mask_token_id) continue;
      rows.push_back(offset + i);
      layout.positions.push_back(i);
    }
    cu_rows.push_back(static_cast<int64_t>(rows.size()));
    offset += static_cast<int64_t>(c->tokens.size());
    tokens.push_back(&c->tokens);
  }
  layout.batch = pack(tokens, info.device);
  layout.eligible = row_set(std::move(rows), std::move(cu_rows), info.device);
  return layout;
}

}  // namespace tabes
