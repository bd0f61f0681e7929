/* What a plain C sample needs of its engine: plain_onnxruntime.c and plain_openvino.c. */
#ifndef PLAIN_SAMPLE_H
#define PLAIN_SAMPLE_H

/* Runs a model file once, on one thread. image and logits: height * width floats each. Returns 0,
 * or 1 where the engine failed. */
int infer(const char *model, float *image, float *logits, int width, int height);

#endif
