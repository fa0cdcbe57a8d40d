// SPDX-License-Identifier: GPL-2.0-only
/*
 * Vendor-specific VFIO: a virtual function gets a folder `nvidia` and becomes a vfio
 * device that opens once a type was written to `nvidia/current_vgpu_type`.
 */
#include <linux/module.h>
#include <linux/vfio_pci_core.h>

#include "card.h"

#define PARAMS_LENGTH 1024

struct virtual_function {
	struct vfio_pci_core_device core; /* first: vfio_alloc_device() asks for it */
	struct card *card;
	/* Under the lock of the card: */
	const struct vgpu_type *type; /* NULL: free */
	u32 instance; /* the GPU instance under it */
	int start;
	bool open;
	char params[PARAMS_LENGTH];
};

static struct virtual_function *of(struct device *dev)
{
	return dev_get_drvdata(dev);
}

/* A VF that has a vGPU offers no other. The header stays when the list is empty. */
static ssize_t creatable_vgpu_types_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	struct virtual_function *vf = of(dev);
	const struct model *model = vf->card->model;
	ssize_t length = sysfs_emit(buf, "ID    : vGPU Name\n");
	u32 instance;
	size_t i;

	mutex_lock(&vf->card->lock);
	for (i = 0; i < model->count && !vf->type; i++)
		if (!card_choose(vf->card, &model->types[i], &instance))
			length += sysfs_emit_at(buf, length, "%-5u : %s\n", model->types[i].id,
						model->types[i].name);
	mutex_unlock(&vf->card->lock);
	return length;
}
static DEVICE_ATTR_RO(creatable_vgpu_types);

static ssize_t current_vgpu_type_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	struct virtual_function *vf = of(dev);
	u32 id;

	mutex_lock(&vf->card->lock);
	id = vf->type ? vf->type->id : 0;
	mutex_unlock(&vf->card->lock);
	return sysfs_emit(buf, "%u\n", id);
}

static int make(struct virtual_function *vf, long id)
{
	const struct model *model = vf->card->model;
	size_t i;

	if (vf->type)
		return -EPERM;
	for (i = 0; i < model->count; i++) {
		if (model->types[i].id != id)
			continue;
		if (card_choose(vf->card, &model->types[i], &vf->instance))
			return -EIO;
		vf->type = &model->types[i];
		vf->start = region_take(card_region(vf->card, vf->instance), vf->type, NO_START);
		return 0;
	}
	return -EIO;
}

static int unmake(struct virtual_function *vf)
{
	if (!vf->type)
		return -EPERM;
	if (vf->open)
		return -EBUSY;
	region_release(card_region(vf->card, vf->instance), vf->type, vf->start);
	vf->type = NULL;
	vf->instance = NO_INSTANCE;
	vf->start = NO_START;
	vf->params[0] = '\0';
	return 0;
}

static ssize_t current_vgpu_type_store(struct device *dev, struct device_attribute *attr,
				       const char *buf, size_t count)
{
	struct virtual_function *vf = of(dev);
	long id;
	int ret = kstrtol(buf, 10, &id);

	if (ret)
		return ret;
	mutex_lock(&vf->card->lock);
	ret = id ? make(vf, id) : unmake(vf);
	mutex_unlock(&vf->card->lock);
	return ret ? ret : count;
}
static DEVICE_ATTR_RW(current_vgpu_type);

/* To another GPU instance or start, before somebody opens it. A move that is refused changes nothing. */
static int move(struct virtual_function *vf, u32 instance, int start)
{
	struct region *from, *to = card_region(vf->card, instance);
	int found;

	if (!vf->type || !to || vf->open || (instance == NO_INSTANCE) != !vf->type->profile)
		return -EIO;
	if (instance != NO_INSTANCE &&
	    container_of(to, struct instance, region)->profile != vf->type->profile)
		return -EIO;
	from = card_region(vf->card, vf->instance);
	region_release(from, vf->type, vf->start);
	found = region_take(to, vf->type, start);
	if (found < 0) {
		region_take(from, vf->type, vf->start);
		return -EIO;
	}
	vf->instance = instance;
	vf->start = found;
	return 0;
}

static ssize_t gpu_instance_id_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	struct virtual_function *vf = of(dev);
	u32 instance;
	bool typed;

	mutex_lock(&vf->card->lock);
	typed = vf->type;
	instance = vf->instance;
	mutex_unlock(&vf->card->lock);
	return typed ? sysfs_emit(buf, "%u\n", instance) : -ENXIO;
}

static ssize_t gpu_instance_id_store(struct device *dev, struct device_attribute *attr, const char *buf,
				     size_t count)
{
	struct virtual_function *vf = of(dev);
	u32 instance;
	int ret = kstrtou32(buf, 10, &instance);

	if (ret)
		return ret;
	mutex_lock(&vf->card->lock);
	ret = instance == vf->instance ? 0 : move(vf, instance, NO_START);
	mutex_unlock(&vf->card->lock);
	return ret ? ret : count;
}
static DEVICE_ATTR_RW(gpu_instance_id);

/* In units of 1 GiB of the card or of the GPU instance. */
static ssize_t placement_id_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	struct virtual_function *vf = of(dev);
	int start;

	mutex_lock(&vf->card->lock);
	start = vf->start;
	mutex_unlock(&vf->card->lock);
	return start == NO_START ? -ENXIO : sysfs_emit(buf, "%d\n", start);
}

static ssize_t placement_id_store(struct device *dev, struct device_attribute *attr, const char *buf,
				  size_t count)
{
	struct virtual_function *vf = of(dev);
	int start, ret = kstrtoint(buf, 10, &start);

	if (ret)
		return ret;
	mutex_lock(&vf->card->lock);
	ret = start < 0 ? -EINVAL : move(vf, vf->instance, start);
	mutex_unlock(&vf->card->lock);
	return ret ? ret : count;
}
static DEVICE_ATTR_RW(placement_id);

static ssize_t vgpu_params_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	struct virtual_function *vf = of(dev);
	ssize_t length;

	mutex_lock(&vf->card->lock);
	length = sysfs_emit(buf, "%s\n", vf->params);
	mutex_unlock(&vf->card->lock);
	return length;
}

static ssize_t vgpu_params_store(struct device *dev, struct device_attribute *attr, const char *buf,
				 size_t count)
{
	struct virtual_function *vf = of(dev);
	size_t length = count && buf[count - 1] == '\n' ? count - 1 : count;
	ssize_t ret = count;

	if (length >= PARAMS_LENGTH)
		return -EINVAL;
	mutex_lock(&vf->card->lock);
	if (!vf->type) {
		ret = -EPERM;
	} else {
		memcpy(vf->params, buf, length);
		vf->params[length] = '\0';
	}
	mutex_unlock(&vf->card->lock);
	return ret;
}
static DEVICE_ATTR_RW(vgpu_params);

static struct attribute *attributes[] = {
	&dev_attr_creatable_vgpu_types.attr,
	&dev_attr_current_vgpu_type.attr,
	&dev_attr_gpu_instance_id.attr,
	&dev_attr_placement_id.attr,
	&dev_attr_vgpu_params.attr,
	NULL,
};

static const struct attribute_group group = { .name = "nvidia", .attrs = attributes };

static struct virtual_function *of_vfio(struct vfio_device *device)
{
	return container_of(device, struct virtual_function, core.vdev);
}

static int open_device(struct vfio_device *device)
{
	struct virtual_function *vf = of_vfio(device);
	int ret;

	mutex_lock(&vf->card->lock);
	vf->open = vf->type;
	mutex_unlock(&vf->card->lock);
	if (!vf->open)
		return -ENODEV;
	ret = vfio_pci_core_enable(&vf->core);
	if (ret)
		vf->open = false;
	else
		vfio_pci_core_finish_enable(&vf->core);
	return ret;
}

static void close_device(struct vfio_device *device)
{
	vfio_pci_core_close_device(device);
	of_vfio(device)->open = false;
}

static const struct vfio_device_ops ops = {
	.name = "nvidia-vfio-pci",
	.init = vfio_pci_core_init_dev,
	.release = vfio_pci_core_release_dev,
	.open_device = open_device,
	.close_device = close_device,
	.ioctl = vfio_pci_core_ioctl,
	.device_feature = vfio_pci_core_ioctl_feature,
	.read = vfio_pci_core_read,
	.write = vfio_pci_core_write,
	.mmap = vfio_pci_core_mmap,
	.request = vfio_pci_core_request,
	.match = vfio_pci_core_match,
};

int virtual_function_probe(struct pci_dev *pdev, struct card *card)
{
	struct virtual_function *vf;
	int ret;

	vf = vfio_alloc_device(virtual_function, core.vdev, &pdev->dev, &ops);
	if (IS_ERR(vf))
		return PTR_ERR(vf);
	vf->card = card;
	vf->instance = NO_INSTANCE;
	vf->start = NO_START;
	dev_set_drvdata(&pdev->dev, &vf->core);
	ret = vfio_pci_core_register_device(&vf->core);
	if (ret)
		goto put;
	if (!card->model->count)
		return 0;
	ret = sysfs_create_group(&pdev->dev.kobj, &group);
	if (!ret)
		return 0;
	vfio_pci_core_unregister_device(&vf->core);
put:
	vfio_put_device(&vf->core.vdev);
	return ret;
}

void virtual_function_remove(struct pci_dev *pdev)
{
	struct virtual_function *vf = of(&pdev->dev);

	if (vf->card->model->count)
		sysfs_remove_group(&pdev->dev.kobj, &group);
	vfio_pci_core_unregister_device(&vf->core);
	mutex_lock(&vf->card->lock);
	if (vf->type)
		unmake(vf);
	mutex_unlock(&vf->card->lock);
	vfio_put_device(&vf->core.vdev);
}
