// Reads a DICOM-SEG as OHIF does: dcmjs parses it, the adapters of Cornerstone place its frames on the source's images.
//
//     node read.mjs SEG... -- IMAGE...
//
// Prints a line of JSON for each SEG. found: of each image that holds any segment, by its SOPInstanceUID and frame, the pixels (row * columns +
// column) and their segments. segments: with sRGB colours, 0 to 1. dicomParser: what that parser, which loads files for
// Cornerstone, finds: the number of frames, and the bytes of pixels where they are not compressed one by one.
import fs from 'node:fs';
import dcmjs from 'dcmjs';
import dicomParser from 'dicom-parser';
import { adaptersSEG } from '@cornerstonejs/adapters';
import { metaData } from '@cornerstonejs/core';

const { DicomMessage, DicomMetaDictionary } = dcmjs.data;

function buffer(file) {
  const bytes = fs.readFileSync(file);
  return bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
}

function naturalized(file) {
  const message = DicomMessage.readFile(buffer(file));
  return DicomMetaDictionary.naturalizeDataset(message.dict);
}

function numbers(value) {
  return value.map(Number);
}

// One imageId a frame, as OHIF's own provider of metadata has it for a loaded series.
const files = process.argv.slice(2);
const images = new Map();
for (const file of files.slice(files.indexOf('--') + 1)) {
  const instance = naturalized(file);
  for (let frame = 1; frame <= Number(instance.NumberOfFrames ?? 1); frame++) {
    images.set(`wadors:${instance.SOPInstanceUID}/frames/${frame}`, { instance, frame });
  }
}

function group(instance, frame, name) {
  const own = instance.PerFrameFunctionalGroupsSequence?.[frame - 1]?.[name];
  const found = own ?? instance.SharedFunctionalGroupsSequence?.[0]?.[name];
  return Array.isArray(found) ? found[0] : found ?? instance;
}

function modules(type, imageId) {
  const found = images.get(imageId);
  if (!found) return undefined;
  const { instance, frame } = found;
  const cosines = numbers(group(instance, frame, 'PlaneOrientationSequence').ImageOrientationPatient);
  const spacing = numbers(group(instance, frame, 'PixelMeasuresSequence').PixelSpacing);
  const position = numbers(group(instance, frame, 'PlanePositionSequence').ImagePositionPatient);
  switch (type) {
    case 'instance':
      return { ...instance, ImageOrientationPatient: cosines, ImagePositionPatient: position, PixelSpacing: spacing };
    case 'generalImageModule':
      return { sopInstanceUID: instance.SOPInstanceUID };
    case 'sopCommonModule':
      return { sopInstanceUID: instance.SOPInstanceUID, sopClassUID: instance.SOPClassUID };
    case 'generalSeriesModule':
      return { seriesInstanceUID: instance.SeriesInstanceUID, modality: instance.Modality };
    case 'imagePixelModule':
      return {
        bitsAllocated: instance.BitsAllocated, bitsStored: instance.BitsStored, highBit: instance.HighBit,
        samplesPerPixel: instance.SamplesPerPixel, pixelRepresentation: instance.PixelRepresentation,
        photometricInterpretation: instance.PhotometricInterpretation,
      };
    case 'imagePlaneModule':
      return {
        rows: instance.Rows, columns: instance.Columns, imageOrientationPatient: cosines,
        rowCosines: cosines.slice(0, 3), columnCosines: cosines.slice(3), imagePositionPatient: position,
        pixelSpacing: spacing, rowPixelSpacing: spacing[0], columnPixelSpacing: spacing[1],
        frameOfReferenceUID: instance.FrameOfReferenceUID,
      };
    default:
      return undefined;
  }
}
metaData.addProvider(modules, 100);

const provider = { get: (type, imageId) => metaData.get(type, imageId) };

for (const seg of files.slice(0, files.indexOf('--'))) {
  const read = await adaptersSEG.Cornerstone3D.Segmentation.createFromDICOMSegBuffer(
    [...images.keys()], buffer(seg), { metadataProvider: provider },
  );

  // Layers of images, since segments that overlap do not fit into one. An image's pixels are found by what it refers to.
  const found = {};
  for (const layer of read.labelMapImages) {
    for (const image of layer) {
      const { instance, frame } = images.get(image.referencedImageId);
      const key = `${instance.SOPInstanceUID} ${frame}`;
      const pixels = image.voxelManager?.getScalarData() ?? image.getPixelData();
      pixels.forEach((segment, index) => {
        if (segment) (found[key] ??= []).push([index, segment]);
      });
    }
  }

  // OHIF takes the i-th entry for segment i, from 1: where segment 0 is listed, all colours move by one.
  const segments = read.segMetadata.data.map((item, index) => item && {
    index, number: Number(item.SegmentNumber), label: item.SegmentLabel,
    colour: item.RecommendedDisplayCIELabValue && dcmjs.data.Colors.dicomlab2RGB(numbers(item.RecommendedDisplayCIELabValue)),
  }).filter(Boolean);

  const parsed = dicomParser.parseDicom(fs.readFileSync(seg)); // in Node it inflates a Buffer alone
  const pixels = parsed.elements.x7fe00010;
  console.log(JSON.stringify({
    found, segments,
    dicomParser: { frames: parsed.intString('x00280008'), bytes: pixels.fragments ? null : pixels.length },
  }));
}
