// f(y) of the joint layers and its derivatives: fused.py has the formulas.
//
// Features of some candidates at a time stay in registers and the first-level
// cache, from y to f and back, so memory sees only y, f and their gradients.
// The derivatives compute the features anew: that is cheaper than to store
// and load them. WIDTH is the network's width H. Nothing here uses threads.

#include <cstdint>
#include <cstring>

namespace {
constexpr int H = WIDTH;
constexpr int LANES = 16;

// Split by the compiler into the registers that the processor has.
typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t IntVec __attribute__((vector_size(4 * LANES)));

// Row-major weights and biases of one model, in front of the logistic
// functions: the fields of _Logistic in fused.py.
struct Weights {
  const float *y_weight, *y_bias, *weight1, *context, *weight2, *bias2,
      *weight3, *bias3, *out_weight, *out_bias;
};

// Their gradients, summed over candidates.
struct Gradients {
  float *y_weight, *y_bias, *weight1, *context, *weight2, *bias2, *weight3,
      *bias3, *out_weight, *out_bias;
};

inline Vec splat(float value) { return value - Vec{}; }

inline float sum(Vec v) {
  float total = 0;
  for (int lane = 0; lane < LANES; ++lane) total += v[lane];
  return total;
}

// 1 / (1 + exp(-z)), to float32 rounding: exp(-z) = 2^k exp(r), |r| < 0.35,
// the latter by its Taylor polynomial.
inline Vec logistic(Vec z) {
  Vec x = -z;
  x = x > 87.f ? splat(87.f) : x;
  x = x < -87.f ? splat(-87.f) : x;
  const float round = 12582912.f;  // 1.5 * 2^23: adding it rounds to integers
  Vec k = (x * 1.44269504f + round) - round;
  Vec r = x - k * 0.693359375f + k * 2.12194440e-4f;
  Vec p = 1.f / 5040 + Vec{};
  p = p * r + 1.f / 720;
  p = p * r + 1.f / 120;
  p = p * r + 1.f / 24;
  p = p * r + 1.f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.f;
  p = p * r + 1.f;
  IntVec exponent = (__builtin_convertvector(k, IntVec) + 127) << 23;
  Vec scale;
  std::memcpy(&scale, &exponent, sizeof scale);
  return 1.f / (1.f + p * scale);
}

// Features of N * LANES candidates of one instance.
template <int N> struct Features {
  Vec s0[H][N], s1[H][N], s2[H][N], s12[H][N], s3[H][N];
};

template <int N>
void layer(const float *weight, const float *bias, int bias_stride,
           const Vec (&in)[H][N], Vec (&out)[H][N]) {
  for (int j = 0; j < H; ++j) {
    Vec z[N];
    for (int v = 0; v < N; ++v) z[v] = splat(bias[j * bias_stride]);
    for (int i = 0; i < H; ++i)
      for (int v = 0; v < N; ++v) z[v] += weight[j * H + i] * in[i][v];
    for (int v = 0; v < N; ++v) out[j][v] = logistic(z[v]);
  }
}

template <int N>
void features_of(const Vec (&y)[N], const Weights &w, int batch,
                 Features<N> &a) {
  for (int j = 0; j < H; ++j)
    for (int v = 0; v < N; ++v)
      a.s0[j][v] = logistic(w.y_weight[j] * y[v] + w.y_bias[j]);
  layer(w.weight1, w.context, batch, a.s0, a.s1);
  layer(w.weight2, w.bias2, 1, a.s1, a.s2);
  for (int j = 0; j < H; ++j)
    for (int v = 0; v < N; ++v) a.s12[j][v] = a.s1[j][v] + a.s2[j][v];
  layer(w.weight3, w.bias3, 1, a.s12, a.s3);
}

// Derivative of the logistic function, from its value.
inline Vec slope_at(Vec s) { return s * (1.f - s); }

// out = derivative of the layer's features in y, from that of its input.
template <int N>
void layer_tangent(const float *weight, const Vec (&in)[H][N],
                   const Vec (&s)[H][N], Vec (&out)[H][N]) {
  for (int j = 0; j < H; ++j) {
    Vec z[N] = {};
    for (int i = 0; i < H; ++i)
      for (int v = 0; v < N; ++v) z[v] += weight[j * H + i] * in[i][v];
    for (int v = 0; v < N; ++v) out[j][v] = slope_at(s[j][v]) * z[v];
  }
}

// Derivatives of all features in y.
template <int N>
void tangents_of(const Features<N> &a, const Weights &w, Features<N> &t) {
  for (int j = 0; j < H; ++j)
    for (int v = 0; v < N; ++v)
      t.s0[j][v] = slope_at(a.s0[j][v]) * w.y_weight[j];
  layer_tangent(w.weight1, t.s0, a.s1, t.s1);
  layer_tangent(w.weight2, t.s1, a.s2, t.s2);
  for (int j = 0; j < H; ++j)
    for (int v = 0; v < N; ++v) t.s12[j][v] = t.s1[j][v] + t.s2[j][v];
  layer_tangent(w.weight3, t.s12, a.s3, t.s3);
}

// total += out_weight (s1 + s2 + s3)
template <int N>
void output(const Features<N> &a, const Weights &w, Vec (&total)[N]) {
  for (int j = 0; j < H; ++j)
    for (int v = 0; v < N; ++v)
      total[v] += w.out_weight[j] * (a.s12[j][v] + a.s3[j][v]);
}

// Sums over candidates, one for each lane. About 20 kB: first-level cache.
struct Sums {
  Vec weight1[H][H], weight2[H][H], weight3[H][H];
  Vec y_weight[H], y_bias[H], bias1[H], bias2[H], bias3[H], out_weight[H];
  Vec out_bias;
};

template <int N>
void logistic_backward(const Vec (&grad)[H][N], const Vec (&s)[H][N],
                       Vec (&grad_z)[H][N]) {
  for (int j = 0; j < H; ++j)
    for (int v = 0; v < N; ++v)
      grad_z[j][v] = grad[j][v] * s[j][v] * (1.f - s[j][v]);
}

// weight += grad_z in^T
template <int N>
void accumulate(const Vec (&grad_z)[H][N], const Vec (&in)[H][N],
                Vec (&weight)[H][H]) {
  for (int j = 0; j < H; ++j)
    for (int i = 0; i < H; ++i) {
      Vec total = weight[j][i];
      for (int v = 0; v < N; ++v) total += grad_z[j][v] * in[i][v];
      weight[j][i] = total;
    }
}

// bias += grad_z
template <int N>
void accumulate(const Vec (&grad_z)[H][N], Vec (&bias)[H]) {
  for (int j = 0; j < H; ++j)
    for (int v = 0; v < N; ++v) bias[j] += grad_z[j][v];
}

// grad = grad * keep + weight^T grad_z
template <int N>
void pass_on(const float *weight, const Vec (&grad_z)[H][N], float keep,
             Vec (&grad)[H][N]) {
  for (int i = 0; i < H; ++i) {
    Vec total[N];
    for (int v = 0; v < N; ++v) total[v] = keep * grad[i][v];
    for (int j = 0; j < H; ++j)
      for (int v = 0; v < N; ++v) total[v] += weight[j * H + i] * grad_z[j][v];
    for (int v = 0; v < N; ++v) grad[i][v] = total[v];
  }
}

// Loads and stores of a block that may be shorter than N * LANES.
template <int N> void load(const float *from, int count, Vec (&block)[N]) {
  std::memset(block, 0, sizeof block);
  std::memcpy(block, from, count * sizeof(float));
}

// Writes f, and its derivative in y where slope is not null.
template <int N>
void forward_block(const float *y, int count, const Weights &w, int batch,
                   float *f, float *slope) {
  Features<N> a;
  Vec block[N], total[N];
  load(y, count, block);
  features_of(block, w, batch, a);
  for (int v = 0; v < N; ++v) total[v] = splat(w.out_bias[0]);
  output(a, w, total);
  std::memcpy(f, total, count * sizeof(float));
  if (!slope) return;
  Features<N> t;
  tangents_of(a, w, t);
  for (int v = 0; v < N; ++v) total[v] = splat(0.f);
  output(t, w, total);
  std::memcpy(slope, total, count * sizeof(float));
}

// Adds the derivatives of sum(grad_f f) in the weights to sums.
template <int N>
void backward_block(const float *y, const float *grad_f, int count,
                    const Weights &w, int batch, Sums &sums) {
  Features<N> a;
  Vec block[N], g[N], grad[H][N], grad_z[H][N];
  load(y, count, block);
  load(grad_f, count, g);
  features_of(block, w, batch, a);
  for (int v = 0; v < N; ++v) sums.out_bias += g[v];
  for (int j = 0; j < H; ++j)
    for (int v = 0; v < N; ++v) {
      grad[j][v] = w.out_weight[j] * g[v];
      sums.out_weight[j] += g[v] * (a.s12[j][v] + a.s3[j][v]);
    }
  logistic_backward(grad, a.s3, grad_z);
  accumulate(grad_z, a.s12, sums.weight3);
  accumulate(grad_z, sums.bias3);
  // The residual connections pass grad on beside the layers.
  pass_on(w.weight3, grad_z, 1.f, grad);
  logistic_backward(grad, a.s2, grad_z);
  accumulate(grad_z, a.s1, sums.weight2);
  accumulate(grad_z, sums.bias2);
  pass_on(w.weight2, grad_z, 1.f, grad);
  logistic_backward(grad, a.s1, grad_z);
  accumulate(grad_z, a.s0, sums.weight1);
  accumulate(grad_z, sums.bias1);
  pass_on(w.weight1, grad_z, 0.f, grad);
  logistic_backward(grad, a.s0, grad_z);
  accumulate(grad_z, sums.y_bias);
  for (int j = 0; j < H; ++j)
    for (int v = 0; v < N; ++v) sums.y_weight[j] += grad_z[j][v] * block[v];
}

// Gradients at a layer's input z and at its derivative z' in y, from those at
// its features s (grad) and at their derivatives s' = s (1 - s) z' (grad_t):
// that of z' is grad_t s (1 - s); s depends on z, and so does s (1 - s).
template <int N>
void tangent_backward(const Vec (&grad)[H][N], const Vec (&grad_t)[H][N],
                      const Vec (&s)[H][N], const Vec (&t)[H][N],
                      Vec (&grad_z)[H][N], Vec (&grad_tz)[H][N]) {
  for (int j = 0; j < H; ++j)
    for (int v = 0; v < N; ++v) {
      const Vec slope = slope_at(s[j][v]);
      grad_tz[j][v] = grad_t[j][v] * slope;
      grad_z[j][v] = grad[j][v] * slope +
                     grad_t[j][v] * t[j][v] * (1.f - 2.f * s[j][v]);
    }
}

// Adds the derivatives of sum(grad_slope f') in the weights to sums.
template <int N>
void slope_backward_block(const float *y, const float *grad_slope, int count,
                          const Weights &w, int batch, Sums &sums) {
  Features<N> a, t;
  Vec block[N], g[N], grad[H][N], grad_t[H][N], grad_z[H][N], grad_tz[H][N];
  load(y, count, block);
  load(grad_slope, count, g);
  features_of(block, w, batch, a);
  tangents_of(a, w, t);
  for (int j = 0; j < H; ++j)
    for (int v = 0; v < N; ++v) {
      grad[j][v] = splat(0.f);
      grad_t[j][v] = w.out_weight[j] * g[v];
      sums.out_weight[j] += g[v] * (t.s12[j][v] + t.s3[j][v]);
    }
  tangent_backward(grad, grad_t, a.s3, t.s3, grad_z, grad_tz);
  accumulate(grad_z, a.s12, sums.weight3);
  accumulate(grad_tz, t.s12, sums.weight3);
  accumulate(grad_z, sums.bias3);
  pass_on(w.weight3, grad_z, 1.f, grad);
  pass_on(w.weight3, grad_tz, 1.f, grad_t);
  tangent_backward(grad, grad_t, a.s2, t.s2, grad_z, grad_tz);
  accumulate(grad_z, a.s1, sums.weight2);
  accumulate(grad_tz, t.s1, sums.weight2);
  accumulate(grad_z, sums.bias2);
  pass_on(w.weight2, grad_z, 1.f, grad);
  pass_on(w.weight2, grad_tz, 1.f, grad_t);
  tangent_backward(grad, grad_t, a.s1, t.s1, grad_z, grad_tz);
  accumulate(grad_z, a.s0, sums.weight1);
  accumulate(grad_tz, t.s0, sums.weight1);
  accumulate(grad_z, sums.bias1);
  pass_on(w.weight1, grad_z, 0.f, grad);
  pass_on(w.weight1, grad_tz, 0.f, grad_t);
  tangent_backward(grad, grad_t, a.s0, t.s0, grad_z, grad_tz);
  accumulate(grad_z, sums.y_bias);
  for (int j = 0; j < H; ++j)
    for (int v = 0; v < N; ++v)
      sums.y_weight[j] += grad_z[j][v] * block[v] + grad_tz[j][v];
}

// Calls wide(start, count) for runs of N vectors, narrow for the rest.
template <int N, class Wide, class Narrow>
void for_blocks(int size, Wide wide, Narrow narrow) {
  int start = 0;
  for (; start + N * LANES <= size; start += N * LANES) wide(start, N * LANES);
  for (; start < size; start += LANES)
    narrow(start, size - start < LANES ? size - start : LANES);
}

// Pointers to one model's part of arrays that hold all models.
template <class Struct> Struct of_model(const Struct &all, int model,
                                        int batch) {
  const long h = model * long(H), hh = h * H;
  return {all.y_weight + h, all.y_bias + h, all.weight1 + hh,
          all.context + h * batch, all.weight2 + hh, all.bias2 + h,
          all.weight3 + hh, all.bias3 + h, all.out_weight + h,
          all.out_bias + model};
}

void store_sums(const Sums &sums, const Gradients &g) {
  for (int j = 0; j < H; ++j) {
    for (int i = 0; i < H; ++i) {
      g.weight1[j * H + i] = sum(sums.weight1[j][i]);
      g.weight2[j * H + i] = sum(sums.weight2[j][i]);
      g.weight3[j * H + i] = sum(sums.weight3[j][i]);
    }
    g.y_weight[j] = sum(sums.y_weight[j]);
    g.y_bias[j] = sum(sums.y_bias[j]);
    g.bias2[j] = sum(sums.bias2[j]);
    g.bias3[j] = sum(sums.bias3[j]);
    g.out_weight[j] = sum(sums.out_weight[j]);
  }
  g.out_bias[0] = sum(sums.out_bias);
}

// Calls instance(weights, offset, model, b) for every instance.
template <class Instance>
void for_instances(const Weights &weights, int model, int batch, int samples,
                   Instance instance) {
  Weights w = of_model(weights, model, batch);
  for (int b = 0; b < batch; ++b, ++w.context)
    instance(w, (model * long(batch) + b) * samples, b);
}

// Gradients of all models, by a function that adds those of a block to sums.
template <int N, class Wide, class Narrow>
void sum_gradients(const float *y, const float *grad, const Weights &weights,
                   int models, int batch, int samples, Wide wide,
                   Narrow narrow, const Gradients &gradients) {
  for (int model = 0; model < models; ++model) {
    const Gradients own = of_model(gradients, model, batch);
    Sums sums;
    std::memset(&sums, 0, sizeof sums);
    for_instances(weights, model, batch, samples,
        [&](const Weights &w, long offset, int b) {
      std::memset(sums.bias1, 0, sizeof sums.bias1);
      for_blocks<N>(samples,
          [&](int start, int count) {
            wide(y + offset + start, grad + offset + start, count, w, batch,
                 sums); },
          [&](int start, int count) {
            narrow(y + offset + start, grad + offset + start, count, w, batch,
                   sums); });
      for (int j = 0; j < H; ++j)
        own.context[j * batch + b] = sum(sums.bias1[j]);
    });
    store_sums(sums, own);
  }
}

}  // namespace

extern "C" {
// y, f, slope: (models, batch, samples); slope, the derivative of f in y, may
// be null. Weights and gradients: arrays of all models.
void joint_forward(const float *y, const Weights *weights, int models,
                   int batch, int samples, float *f, float *slope) {
  for (int model = 0; model < models; ++model)
    for_instances(*weights, model, batch, samples,
        [&](const Weights &w, long offset, int) {
      float *to = slope ? slope + offset : nullptr;
      for_blocks<4>(samples,
          [&](int start, int count) {
            forward_block<4>(y + offset + start, count, w, batch,
                             f + offset + start, to ? to + start : to); },
          [&](int start, int count) {
            forward_block<1>(y + offset + start, count, w, batch,
                             f + offset + start, to ? to + start : to); });
    });
}

// Derivatives of sum(grad_f f) in the weights.
void joint_backward(const float *y, const float *grad_f,
                    const Weights *weights, int models, int batch,
                    int samples, const Gradients *gradients) {
  sum_gradients<4>(y, grad_f, *weights, models, batch, samples,
                   backward_block<4>, backward_block<1>, *gradients);
}

// Derivatives of sum(grad_slope f') in the weights.
void joint_slope_backward(const float *y, const float *grad_slope,
                          const Weights *weights, int models, int batch,
                          int samples, const Gradients *gradients) {
  sum_gradients<2>(y, grad_slope, *weights, models, batch, samples,
                   slope_backward_block<2>, slope_backward_block<1>,
                   *gradients);
}
}  // extern "C"
