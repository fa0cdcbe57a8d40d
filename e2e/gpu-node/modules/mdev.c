// SPDX-License-Identifier: GPL-2.0-only
/*
 * mdev types on a physical function. What a vGPU does once it exists comes from the
 * kernel's sample mdpy.c, a PCI display, which is taken in whole except for the device
 * that it makes of its own.
 */
#include <linux/module.h>

#undef module_init
#undef module_exit
#undef module_param_named
#undef MODULE_PARM_DESC
#undef MODULE_DESCRIPTION
#undef MODULE_LICENSE
#define module_init(function)
#define module_exit(function)
#define module_param_named(...)
#define MODULE_PARM_DESC(...)
#define MODULE_DESCRIPTION(text)
#define MODULE_LICENSE(text)
#include "mdpy.c"

#include "card.h"

struct card_type {
	struct mdpy_type screen; /* first: mdpy.c finds its type by it */
	const struct vgpu_type *vgpu;
	char id[12];
};

struct mdev_side {
	struct mdev_parent parent;
	struct card *card;
	struct card_type *types;
	struct mdev_type **pointers;
};

static const struct card_type *type_of(const struct mdev_type *type)
{
	return container_of(type, struct card_type, screen.type);
}

static struct card *card_of(const struct mdev_type *type)
{
	return container_of(type->parent, struct mdev_side, parent)->card;
}

static int take(struct mdev_type *type)
{
	struct card *card = card_of(type);
	int ret;

	mutex_lock(&card->lock);
	ret = region_take(&card->whole, type_of(type)->vgpu, NO_START);
	mutex_unlock(&card->lock);
	return ret < 0 ? ret : 0;
}

static void release(struct mdev_type *type)
{
	struct card *card = card_of(type);

	mutex_lock(&card->lock);
	region_release(&card->whole, type_of(type)->vgpu, NO_START);
	mutex_unlock(&card->lock);
}

static int vgpu_probe(struct mdev_device *mdev)
{
	int ret = take(mdev->type);

	if (ret)
		return ret;
	ret = mdpy_probe(mdev);
	if (ret)
		release(mdev->type);
	return ret;
}

static void vgpu_remove(struct mdev_device *mdev)
{
	mdpy_remove(mdev);
	release(mdev->type);
}

static unsigned int available(struct mdev_type *type)
{
	struct card *card = card_of(type);
	unsigned int room;

	mutex_lock(&card->lock);
	room = region_room(&card->whole, type_of(type)->vgpu);
	mutex_unlock(&card->lock);
	return room;
}

static ssize_t description(struct mdev_type *type, char *buf)
{
	const struct vgpu_type *vgpu = type_of(type)->vgpu;

	return sysfs_emit(buf,
			  "num_heads=%u, frl_config=%u, framebuffer=%uM, max_resolution=%s, max_instance=%u\n",
			  vgpu->heads, vgpu->frame_rate_limit, vgpu->framebuffer, vgpu->resolution,
			  vgpu->most);
}

static struct mdev_driver vgpu_driver = {
	.device_api = VFIO_DEVICE_API_PCI_STRING,
	.probe = vgpu_probe,
	.remove = vgpu_remove,
	.get_available = available,
	.show_description = description,
	.driver = {
		.name = "nvidia-vgpu-vfio",
		.owner = THIS_MODULE,
		.mod_name = KBUILD_MODNAME,
		.dev_groups = mdev_dev_groups,
	},
};

int mdev_side_start(struct card *card)
{
	const struct model *model = card->model;
	struct device *dev = &card->pdev->dev;
	struct mdev_side *side;
	size_t i;

	side = devm_kzalloc(dev, sizeof(*side), GFP_KERNEL);
	if (!side)
		return -ENOMEM;
	side->card = card;
	side->types = devm_kcalloc(dev, model->count, sizeof(*side->types), GFP_KERNEL);
	side->pointers = devm_kcalloc(dev, model->count, sizeof(*side->pointers), GFP_KERNEL);
	if (!side->types || !side->pointers)
		return -ENOMEM;
	for (i = 0; i < model->count; i++) {
		struct card_type *type = &side->types[i];

		/* The screen of mdpy's smallest type. */
		type->screen = mdpy_types[0];
		type->vgpu = &model->types[i];
		snprintf(type->id, sizeof(type->id), "%u", type->vgpu->id);
		type->screen.type.sysfs_name = type->id;
		type->screen.type.pretty_name = type->vgpu->name;
		side->pointers[i] = &type->screen.type;
	}
	card->mdev = side;
	return mdev_register_parent(&side->parent, dev, &vgpu_driver, side->pointers, model->count);
}

void mdev_side_stop(struct card *card)
{
	mdev_unregister_parent(&card->mdev->parent);
}

int mdev_side_init(void)
{
	return mdev_register_driver(&vgpu_driver);
}

void mdev_side_exit(void)
{
	mdev_unregister_driver(&vgpu_driver);
}
