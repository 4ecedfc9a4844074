// The parts of model.py that plain PyTorch computes slowly on a CPU: attention with sinks, windows, rotary embedding and a
// shared prefix; the clamped SwiGLU with its shares; RMSNorm. Each with its gradient. Called through ctypes by fused.py,
// which holds them against model.py. One thread; bf16 in memory, fp32 in registers.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int kDim = 32;   // head_dim
constexpr int kLanes = 16;
constexpr int kMaxGroup = 4;  // Query heads per K/V head

typedef float V __attribute__((vector_size(64)));
typedef float Unaligned __attribute__((vector_size(64), aligned(4)));

inline V Load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
inline void Store(float* to, V value) { *reinterpret_cast<Unaligned*>(to) = value; }

inline float FromBf16(uint16_t bits) {
  const uint32_t wide = uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

inline uint16_t ToBf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

struct Shape {
  int64_t num_prefix, num_rows, length, heads, kv_heads, window;  // window 0: full
};

// to[d] = rotated from[d]; sign -1 turns gradients back.
inline void Rotate(const float* from, const float* cos, const float* sin, float sign, float* to) {
  for (int d = 0; d < kDim / 2; ++d) {
    const float a = from[d], b = from[d + kDim / 2], c = cos[d], s = sign * sin[d];
    to[d] = a * c - b * s;
    to[d + kDim / 2] = b * c + a * s;
  }
}

inline void ReadHead(const uint16_t* from, float* to) {
  for (int d = 0; d < kDim; ++d) to[d] = FromBf16(from[d]);
}

inline void WriteHead(const float* from, uint16_t* to) {
  for (int d = 0; d < kDim; ++d) to[d] = ToBf16(from[d]);
}

// One K/V head's keys and values, in both layouts, and their gradients. Index: prefix, then the current row.
struct Keys {
  int64_t stride;
  std::vector<float> k, v, k_t, v_t, dk, dv;

  explicit Keys(int64_t count)
      : stride((count + 2 * kLanes) / kLanes * kLanes), k(stride * kDim), v(k), k_t(k), v_t(k), dk(k), dv(k) {}

  void Read(const uint16_t* qkv, int64_t width, int64_t head, const Shape& s, int64_t token, int64_t count, int64_t at,
            const float* cos, const float* sin) {
    for (int64_t j = 0; j < count; ++j) {
      const uint16_t* const from = qkv + (token + j) * width;
      float* const key = &k[(at + j) * kDim];
      float* const value = &v[(at + j) * kDim];
      float plain[kDim];
      ReadHead(from + (s.heads + head) * kDim, plain);
      Rotate(plain, cos + (at + j) * kDim / 2, sin + (at + j) * kDim / 2, 1, key);
      ReadHead(from + (s.heads + s.kv_heads + head) * kDim, value);
      for (int d = 0; d < kDim; ++d) {
        k_t[d * stride + at + j] = key[d];
        v_t[d * stride + at + j] = value[d];
      }
    }
    std::fill_n(dk.begin() + at * kDim, count * kDim, 0.0f);
    std::fill_n(dv.begin() + at * kDim, count * kDim, 0.0f);
  }

  void WriteGradients(uint16_t* dqkv, int64_t width, int64_t head, const Shape& s, int64_t token, int64_t count,
                      int64_t at, const float* cos, const float* sin) {
    for (int64_t j = 0; j < count; ++j) {
      uint16_t* const to = dqkv + (token + j) * width;
      float plain[kDim];
      Rotate(&dk[(at + j) * kDim], cos + (at + j) * kDim / 2, sin + (at + j) * kDim / 2, -1, plain);
      WriteHead(plain, to + (s.heads + head) * kDim);
      WriteHead(&dv[(at + j) * kDim], to + (s.heads + s.kv_heads + head) * kDim);
    }
  }
};

// out[h][j] = sum_d x[h][d] * m_t[d][j] for j in [low, low + count), written from out[h][0].
template <int kGroup>
void Dots(const float (*x)[kDim], const float* m_t, int64_t stride, int64_t low, int64_t count, float* out, int64_t out_stride) {
  for (int64_t j = 0; j < count; j += 2 * kLanes) {
    V sum[kGroup][2] = {};
    for (int d = 0; d < kDim; ++d) {
      const V m0 = Load(m_t + d * stride + low + j), m1 = Load(m_t + d * stride + low + j + kLanes);
      for (int h = 0; h < kGroup; ++h) {
        sum[h][0] += x[h][d] * m0;
        sum[h][1] += x[h][d] * m1;
      }
    }
    for (int h = 0; h < kGroup; ++h) {
      Store(out + h * out_stride + j, sum[h][0]);
      Store(out + h * out_stride + j + kLanes, sum[h][1]);
    }
  }
}

// out[h][:] = sum_j p[h][j] * m[low + j][:]
template <int kGroup>
void Weighted(const float* p, int64_t p_stride, const float* m, int64_t low, int64_t count, float (*out)[kDim]) {
  V sum[kGroup][2] = {};
  for (int64_t j = 0; j < count; ++j) {
    const V m0 = Load(m + (low + j) * kDim), m1 = Load(m + (low + j) * kDim + kLanes);
    for (int h = 0; h < kGroup; ++h) {
      sum[h][0] += p[h * p_stride + j] * m0;
      sum[h][1] += p[h * p_stride + j] * m1;
    }
  }
  for (int h = 0; h < kGroup; ++h) {
    Store(out[h], sum[h][0]);
    Store(out[h] + kLanes, sum[h][1]);
  }
}

// m[low + j][:] += sum_h p[h][j] * x[h][:]
template <int kGroup>
void Spread(const float* p, int64_t p_stride, const float (*x)[kDim], int64_t low, int64_t count, float* m) {
  V x0[kGroup], x1[kGroup];
  for (int h = 0; h < kGroup; ++h) x0[h] = Load(x[h]), x1[h] = Load(x[h] + kLanes);
  for (int64_t j = 0; j < count; ++j) {
    float* const to = m + (low + j) * kDim;
    V sum0 = Load(to), sum1 = Load(to + kLanes);
    for (int h = 0; h < kGroup; ++h) {
      sum0 += p[h * p_stride + j] * x0[h];
      sum1 += p[h * p_stride + j] * x1[h];
    }
    Store(to, sum0);
    Store(to + kLanes, sum1);
  }
}

struct Tensors {
  const uint16_t* qkv;  // [tokens, heads + 2 kv_heads, kDim]
  const float *cos, *sin;  // [positions, kDim / 2]
  const float* sinks;  // [heads]
  uint16_t* out;  // [tokens, heads, kDim]
  float* lse;  // [tokens, heads], the sink included
  const uint16_t* dout;
  uint16_t* dqkv;
  float* dsinks;
};

template <int kGroup>
struct Attention {
  Shape s;
  Tensors t;
  int64_t width = (s.heads + 2 * s.kv_heads) * kDim;
  Keys keys{s.num_prefix + s.length};
  std::vector<float> scores = std::vector<float>(2 * kGroup * keys.stride);

  // Queries of `count` tokens from `token` on, at positions from `at` on.
  void Run(int64_t head, int64_t token, int64_t count, int64_t at) {
    const float scale = 1 / std::sqrt(float{kDim});
    float* const p = scores.data();
    float* const ds = p + kGroup * keys.stride;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t position = at + i, first = head * kGroup;
      const int64_t low = s.window > 0 ? std::max<int64_t>(0, position - s.window + 1) : 0;
      const int64_t visible = position - low + 1;
      const float* const cos = t.cos + position * kDim / 2;
      const float* const sin = t.sin + position * kDim / 2;
      float q[kGroup][kDim], o[kGroup][kDim];
      for (int h = 0; h < kGroup; ++h) {
        float plain[kDim];
        ReadHead(t.qkv + (token + i) * width + (first + h) * kDim, plain);
        Rotate(plain, cos, sin, 1, q[h]);
        for (float& x : q[h]) x *= scale;
      }
      Dots<kGroup>(q, keys.k_t.data(), keys.stride, low, visible, p, keys.stride);
      float* const lse = t.lse + (token + i) * s.heads + first;
      uint16_t* const out = t.out + ((token + i) * s.heads + first) * kDim;
      if (t.dout == nullptr) {
        for (int h = 0; h < kGroup; ++h) {
          float* const row = p + h * keys.stride;
          float most = t.sinks[first + h], sum = 0;
          for (int64_t j = 0; j < visible; ++j) most = std::max(most, row[j]);
          for (int64_t j = 0; j < visible; ++j) sum += row[j] = std::exp(row[j] - most);
          sum += std::exp(t.sinks[first + h] - most);
          lse[h] = most + std::log(sum);
          for (int64_t j = 0; j < visible; ++j) row[j] /= sum;
        }
        Weighted<kGroup>(p, keys.stride, keys.v.data(), low, visible, o);
        for (int h = 0; h < kGroup; ++h) WriteHead(o[h], out + h * kDim);
        continue;
      }
      float dout[kGroup][kDim], dq[kGroup][kDim], delta[kGroup];
      for (int h = 0; h < kGroup; ++h) {
        ReadHead(t.dout + ((token + i) * s.heads + first + h) * kDim, dout[h]);
        ReadHead(out + h * kDim, o[h]);
        delta[h] = 0;
        for (int d = 0; d < kDim; ++d) delta[h] += dout[h][d] * o[h][d];
        t.dsinks[first + h] -= std::exp(t.sinks[first + h] - lse[h]) * delta[h];
      }
      Dots<kGroup>(dout, keys.v_t.data(), keys.stride, low, visible, ds, keys.stride);
      for (int h = 0; h < kGroup; ++h) {
        float* const row = p + h * keys.stride;
        float* const drow = ds + h * keys.stride;
        for (int64_t j = 0; j < visible; ++j) {
          row[j] = std::exp(row[j] - lse[h]);
          drow[j] = row[j] * (drow[j] - delta[h]);
        }
      }
      Weighted<kGroup>(ds, keys.stride, keys.k.data(), low, visible, dq);
      Spread<kGroup>(ds, keys.stride, q, low, visible, keys.dk.data());
      Spread<kGroup>(p, keys.stride, dout, low, visible, keys.dv.data());
      for (int h = 0; h < kGroup; ++h) {
        float plain[kDim];
        Rotate(dq[h], cos, sin, -1, plain);
        for (float& x : plain) x *= scale;
        WriteHead(plain, t.dqkv + (token + i) * width + (first + h) * kDim);
      }
    }
  }

  void All() {
    const int64_t n = s.num_prefix;
    for (int64_t head = 0; head < s.kv_heads; ++head) {
      keys.Read(t.qkv, width, head, s, 0, n, 0, t.cos, t.sin);
      Run(head, 0, n, 0);
      for (int64_t row = 0; row < s.num_rows; ++row) {
        const int64_t token = n + row * s.length;
        keys.Read(t.qkv, width, head, s, token, s.length, n, t.cos, t.sin);
        Run(head, token, s.length, n);
        if (t.dout != nullptr) keys.WriteGradients(t.dqkv, width, head, s, token, s.length, n, t.cos, t.sin);
      }
      if (t.dout != nullptr) keys.WriteGradients(t.dqkv, width, head, s, 0, n, 0, t.cos, t.sin);
    }
  }
};

void Attend(const Shape& s, const Tensors& t) {
  switch (s.heads / s.kv_heads) {
    case 1: Attention<1>{s, t}.All(); break;
    case 2: Attention<2>{s, t}.All(); break;
    case 3: Attention<3>{s, t}.All(); break;
    case kMaxGroup: Attention<kMaxGroup>{s, t}.All(); break;
  }
}

constexpr float kAlpha = 1.702f, kLimit = 7.0f;

}  // namespace

extern "C" {

void AttentionForward(const int64_t* shape, const uint16_t* qkv, const float* cos, const float* sin, const float* sinks,
                      uint16_t* out, float* lse) {
  Shape s;
  std::memcpy(&s, shape, sizeof s);
  Attend(s, {qkv, cos, sin, sinks, out, lse, nullptr, nullptr, nullptr});
}

void AttentionBackward(const int64_t* shape, const uint16_t* qkv, const float* cos, const float* sin, const float* sinks,
                       uint16_t* out, float* lse, const uint16_t* dout, uint16_t* dqkv, float* dsinks) {
  Shape s;
  std::memcpy(&s, shape, sizeof s);
  Attend(s, {qkv, cos, sin, sinks, out, lse, dout, dqkv, dsinks});
}

// gate_up [rows, 2, experts, width], share [rows, experts] -> h [rows, experts, width]; experts without share are zero.
void ActivationForward(int64_t rows, int64_t experts, int64_t width, const uint16_t* gate_up, const float* share,
                       uint16_t* h) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t e = 0; e < experts; ++e) {
      const uint16_t* const gates = gate_up + (r * 2 * experts + e) * width;
      const uint16_t* const ups = gates + experts * width;
      uint16_t* const to = h + (r * experts + e) * width;
      const float part = share[r * experts + e];
      if (part == 0) {
        std::memset(to, 0, width * 2);
        continue;
      }
      for (int64_t i = 0; i < width; ++i) {
        const float gate = std::min(FromBf16(gates[i]), kLimit);
        const float up = std::min(std::max(FromBf16(ups[i]), -kLimit), kLimit);
        to[i] = ToBf16(gate / (1 + std::exp(-kAlpha * gate)) * (up + 1) * part);
      }
    }
  }
}

void ActivationBackward(int64_t rows, int64_t experts, int64_t width, const uint16_t* gate_up, const float* share,
                        const uint16_t* dh, uint16_t* dgate_up, float* dshare) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t e = 0; e < experts; ++e) {
      const int64_t at = (r * 2 * experts + e) * width, far = experts * width;
      const uint16_t* const from = dh + (r * experts + e) * width;
      const float part = share[r * experts + e];
      float sum = 0;
      if (part == 0) {
        std::memset(dgate_up + at, 0, width * 2);
        std::memset(dgate_up + at + far, 0, width * 2);
      } else {
        for (int64_t i = 0; i < width; ++i) {
          const float g = FromBf16(gate_up[at + i]), u = FromBf16(gate_up[at + far + i]), d = FromBf16(from[i]);
          const float gate = std::min(g, kLimit), up = std::min(std::max(u, -kLimit), kLimit);
          const float s = 1 / (1 + std::exp(-kAlpha * gate));
          sum += d * gate * s * (up + 1);
          const float dgate = d * part * (up + 1) * (s + kAlpha * gate * s * (1 - s));
          const float dup = d * part * gate * s;
          dgate_up[at + i] = ToBf16(g < kLimit ? dgate : 0.0f);
          dgate_up[at + far + i] = ToBf16(std::fabs(u) < kLimit ? dup : 0.0f);
        }
      }
      dshare[r * experts + e] = sum;
    }
  }
}

// out = x / rms(x) * gain
void NormForward(int64_t rows, int64_t width, const float* x, const float* gain, uint16_t* out) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* const row = x + r * width;
    float sum = 0;
    for (int64_t i = 0; i < width; ++i) sum += row[i] * row[i];
    const float scale = 1 / std::sqrt(sum / static_cast<float>(width) + 1e-5f);
    for (int64_t i = 0; i < width; ++i) out[r * width + i] = ToBf16(row[i] * scale * gain[i]);
  }
}

void NormBackward(int64_t rows, int64_t width, const float* x, const float* gain, const uint16_t* dout, float* dx,
                  float* dgain) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* const row = x + r * width;
    const uint16_t* const d = dout + r * width;
    float sum = 0, dot = 0;
    for (int64_t i = 0; i < width; ++i) {
      sum += row[i] * row[i];
      dot += row[i] * gain[i] * FromBf16(d[i]);
    }
    const float scale = 1 / std::sqrt(sum / static_cast<float>(width) + 1e-5f);
    const float back = dot * scale * scale * scale / static_cast<float>(width);
    for (int64_t i = 0; i < width; ++i) {
      const float g = FromBf16(d[i]);
      dx[r * width + i] = g * gain[i] * scale - row[i] * back;
      dgain[i] += g * row[i] * scale;
    }
  }
}

}  // extern "C"
