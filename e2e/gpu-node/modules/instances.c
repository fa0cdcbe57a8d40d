// SPDX-License-Identifier: GPL-2.0-only
/*
 * GPU instances of a card, in its file `gpu_instances`. No real driver has it: there, NVML
 * and the kernel's part of the driver are one. Here a stand-in for NVML writes:
 *
 *   mig 1 mixed 0
 *   3 profile 47 at 0 size 3 ready 1 mixed 0
 *
 * and reads how often a card was given to the driver: no instance outlives that.
 */
#include <linux/module.h>

#include "card.h"

static int parse(const struct card *card, const char *text, struct instance *all, bool *mig, bool *mixed)
{
	unsigned int on, sizes, ready;
	int count = 0, length;

	if (sscanf(text, "mig %u mixed %u\n%n", &on, &sizes, &length) != 2)
		return -EINVAL;
	*mig = on;
	*mixed = sizes;
	for (text += length; *text; text += length) {
		struct instance *one = &all[count];

		if (count++ == MOST_INSTANCES)
			return -ENOSPC;
		memset(one, 0, sizeof(*one));
		if (sscanf(text, "%u profile %u at %u size %u ready %u mixed %u\n%n", &one->id, &one->profile,
			   &one->start, &one->size, &ready, &sizes, &length) != 6)
			return -EINVAL;
		one->ready = ready;
		one->region.mixed = sizes;
		one->region.gib = card->model->units ? card->model->gib * one->size / card->model->units : 0;
		if (!one->region.gib || one->region.gib > MOST_GIB)
			return -EINVAL;
	}
	return count;
}

static bool is_same(const struct instance *one, const struct instance *other)
{
	return one->id == other->id && one->profile == other->profile && one->start == other->start;
}

/* An instance with vGPUs on it stays. */
static int replace(struct card *card, struct instance *all, int count, bool mig, bool mixed)
{
	unsigned int i;
	int j;

	if (card->whole.vgpus && (mig || mixed != card->whole.mixed))
		return -EBUSY;
	for (i = 0; i < card->count; i++) {
		const struct instance *old = &card->instances[i];

		for (j = 0; j < count && !is_same(old, &all[j]); j++)
			;
		if (j < count)
			all[j].region = old->region;
		else if (old->region.vgpus)
			return -EBUSY;
	}
	memcpy(card->instances, all, count * sizeof(*all));
	card->count = count;
	card->mig = mig;
	card->whole.mixed = mixed;
	return 0;
}

static ssize_t gpu_instances_store(struct device *dev, struct device_attribute *attr, const char *buf, size_t length)
{
	struct card *card = dev_get_drvdata(dev);
	struct instance all[MOST_INSTANCES];
	bool mig, mixed;
	int count = parse(card, buf, all, &mig, &mixed), ret;

	if (count < 0)
		return count;
	mutex_lock(&card->lock);
	ret = replace(card, all, count, mig, mixed);
	mutex_unlock(&card->lock);
	return ret ? ret : length;
}

static ssize_t gpu_instances_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	const struct card *card = dev_get_drvdata(dev);

	return sysfs_emit(buf, "%u\n", card->binding);
}
static DEVICE_ATTR_RW(gpu_instances);

static struct attribute *attributes[] = { &dev_attr_gpu_instances.attr, NULL };

const struct attribute_group instances_group = { .attrs = attributes };
